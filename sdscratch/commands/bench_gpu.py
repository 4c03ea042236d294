"""`sdscratch bench gpu`: all that is asked of a GPU, in one call of a few minutes and one table."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from tempfile import TemporaryDirectory

from omegaconf import DictConfig

from sdscratch.commands.bench import conclude, network_of, preheated, quieten, setting_of, writable
from sdscratch.errors import ConfigError, check_number


def run(cfg: DictConfig) -> None:
    """Measure part by part until the minutes are over, write bench.json, bench.md and bench.png, and end with `verdict: ...`.

    Nothing that was compiled in earlier calls is used, so that the first step is a cold one. Exit codes are those of `bench`.
    """
    check_number("minutes", cfg.minutes, 0)
    until = time.perf_counter() + 60 * cfg.minutes
    if not cfg.parts:
        raise ConfigError("parts is []: expected at least one thing to measure")
    quieten()

    from sdscratch.bench.parts import Part, run_parts
    from sdscratch.bench.report import Findings

    parts = [Part.of(part) for part in cfg.parts]
    setting = setting_of(cfg, parts[0].batch_size, parts[0].latent_size)
    findings, out = Findings(), writable(cfg, "experiments/bench-gpu")
    rate = preheated(findings, setting, cfg.preheat)
    with _nothing_compiled():
        findings.add(run_parts(parts, lambda: network_of(cfg), setting, until, rate))
    about = {**setting.about(), "minutes": cfg.minutes, "parts": [asdict(part) for part in parts]}
    for name in ("batch_size", "latent_size", "memory_budget"):  # each part has its own
        del about[name]
    conclude(findings, about, out, "sdscratch bench gpu", cfg.strict)


@contextmanager
def _nothing_compiled() -> Iterator[None]:
    """The compiler keeps what it makes in a folder of its own, and finds nothing there."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with TemporaryDirectory() as os.environ[name]:
        try:
            yield
        finally:
            del os.environ[name]
            if before is not None:
                os.environ[name] = before

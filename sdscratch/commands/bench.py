"""`sdscratch bench`: how fast it is, beside others that do the same."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sdscratch.config import build
from sdscratch.console import say
from sdscratch.errors import CannotWriteError, ConfigError, SdscratchError, check_choice, check_whole

if TYPE_CHECKING:
    from sdscratch.bench.report import Findings
    from sdscratch.bench.setting import Setting
    from sdscratch.models import UNet

SUBJECTS = ("unet", "train", "loader", "sample", "encode", "startup")


class SlowerError(SdscratchError):
    """Something is slower than its floor."""

    exit_code = 1


def run(cfg: DictConfig) -> None:
    """Measure, write bench.json, bench.md and bench.png, and end with a line `verdict: ...`.

    Exit code 0 whatever the verdict; with strict=true, 1 where it is `slower`.
    """
    check_choice("what", cfg.what, (*SUBJECTS, "all"))
    check_whole("threads", cfg.threads)
    import diffusers
    import torch
    import transformers

    from sdscratch.bench.report import PAGE, Fact, Findings, write_report
    from sdscratch.bench.setting import preheat
    from sdscratch.commands.quiet import quieten_libraries

    quieten_libraries()
    transformers.utils.logging.set_verbosity_error()  # of what pipelines would like to have installed
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(cfg.threads)
    setting = _setting(cfg)
    findings, rate = Findings(), None
    out = _writable(Path(cfg.out or f"experiments/bench-{cfg.what}"))
    if setting.on_cuda:
        rate = preheat(setting.device, cfg.preheat)
        findings.facts.append(Fact("matrix product, bfloat16", rate, "TFLOP/s"))
    trace = out / "trace.json" if cfg.trace else None
    for name in SUBJECTS if cfg.what == "all" else [cfg.what]:
        say(f"{name} ...")
        findings.add(_benchmark(name, cfg, setting, rate, trace)())
    write_report(out, _command(cfg), setting.about(), findings)
    for c in findings.comparisons:
        say(
            f"{c.title}: {c.ratio:.3f} times as fast as {c.peer} ({c.p10:.3f} to {c.p90:.3f}; null {c.null:.3f}): {c.verdict}"
        )
    for fact in findings.facts:
        say(f"{fact.title}: {fact.value:.4g} {fact.unit}")
    print(out / PAGE)
    _conclude(findings, cfg.strict)


def _writable(out: Path) -> Path:
    """Found out before anything is measured."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write into {out}: {error.strerror or error}; set out= to another folder"
        ) from error
    return out


def _network(cfg: DictConfig) -> UNet:
    network = build(cfg.model)
    if network.config["_class_name"] != "UNet2DConditionModel":
        raise ConfigError(
            f"{cfg.model._target_} is a network that diffusers has not, so there is nothing to compare it with: set model= to "
            "another, such as model=unet_mid"
        )
    return network


def _command(cfg: DictConfig) -> str:
    """Without where the results go, which they do not depend on."""
    if sys.argv[1:2] != ["bench"]:
        return f"sdscratch bench {cfg.what}"
    return shlex.join(["sdscratch", *(word for word in sys.argv[1:] if not word.startswith("out="))])


def _conclude(findings: Findings, strict: bool) -> None:
    """The worst of all verdicts, and the ratio that it is about."""
    if not findings.comparisons:
        return
    order = ("slower", "inconclusive", "ok")
    worst = min(findings.comparisons, key=lambda c: (order.index(c.verdict), c.ratio))
    print(f"verdict: {worst.verdict} ratio={worst.ratio:.3f}")
    if strict and worst.verdict == "slower":
        raise SlowerError(
            f"{worst.title}: {worst.ratio:.3f} times as fast as {worst.peer}, expected at least {worst.floor:g}"
        )


def _setting(cfg: DictConfig) -> Setting:
    import torch

    from sdscratch.bench.setting import Setting

    try:
        device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:  # torch has no class of its own for it
        raise ConfigError(f"device={cfg.device} is unknown; expected cpu or cuda") from error
    on_cuda = device.type == "cuda"
    return Setting(
        device,
        cfg.batch_size,
        cfg.latent_size,
        cfg.rounds,
        precision=cfg.precision or ("bf16-mixed" if on_cuda else "32-true"),
        channels_last=on_cuda if cfg.channels_last is None else cfg.channels_last,
        compile=cfg.compile or ("regions" if on_cuda else "no"),
    )


def _benchmark(
    name: str, cfg: DictConfig, setting: Setting, rate: float | None, trace: Path | None
) -> Callable[[], Findings]:
    from sdscratch.bench.encode import bench_encode
    from sdscratch.bench.loader import bench_loader
    from sdscratch.bench.sample import bench_sample
    from sdscratch.bench.startup import bench_startup
    from sdscratch.bench.train import bench_train
    from sdscratch.bench.unet import bench_unet

    return {
        "unet": lambda: bench_unet(_network(cfg), setting),
        "train": lambda: bench_train(_network(cfg), setting, rate, trace),
        "loader": lambda: bench_loader(setting),
        "sample": lambda: bench_sample(_network(cfg), setting),
        "encode": lambda: bench_encode(setting),
        "startup": lambda: bench_startup(setting),
    }[name]

"""Several benchmarks in one call, each at a size of its own, within a span of time."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from sdscratch.bench.bounds import bounded
from sdscratch.bench.capped import bench_capped
from sdscratch.bench.encode import bench_encode
from sdscratch.bench.report import Findings
from sdscratch.bench.sample import bench_sample
from sdscratch.bench.setting import Setting, forget
from sdscratch.bench.steps import our_steps
from sdscratch.bench.train import bench_train, parameters_of
from sdscratch.console import say
from sdscratch.errors import ConfigError, check_choice, check_number, check_whole
from sdscratch.models import UNet


@dataclass(frozen=True)
class Part:
    """what: one of MEASURES. share: of the time, beside those of the others. memory_budget: see LatentDiffusion."""

    what: str
    batch_size: int
    latent_size: int
    share: float
    memory_budget: float = 1.0

    def __post_init__(self) -> None:
        check_choice("what", self.what, MEASURES)
        check_whole("batch_size", self.batch_size)
        check_whole("latent_size", self.latent_size)
        check_number("share", self.share, 0.01)
        check_number("memory_budget", self.memory_budget, 0, 1)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Part:
        """Raises ConfigError for keys that there are not, or are missing."""
        try:
            return cls(**settings)
        except TypeError as error:
            names = ", ".join(field.name for field in fields(cls))
            raise ConfigError(
                f"parts has {dict(settings)}: expected {names}, of which the last may be left out"
            ) from error

    @property
    def title(self) -> str:
        """Which tells it from the others."""
        kept = "" if self.memory_budget == 1 else f", memory_budget={self.memory_budget:g}"
        return f"{8 * self.latent_size} px, batch {self.batch_size}{kept}"


def run_parts(
    parts: Sequence[Part], network: Callable[[], UNet], setting: Setting, until: float, rate: float | None = None
) -> Findings:
    """One part after the other. Of the time up to `until`, on time.perf_counter, each has its share of what those before it
    left; where less than half of the planned share is left, a part is not begun. What is left out is named.

    network: makes a new one, where torch makes new tensors. rate: of a matrix product on this device, in TFLOP/s.
    """

    def on_device() -> UNet:
        with setting.device:
            return network()

    with torch.device("meta"):
        parameters = parameters_of(network())
    findings, second = Findings(), (until - time.perf_counter()) / sum(part.share for part in parts)
    name = setting.about()["machine"]["device"]
    for number, part in enumerate(parts):
        left = until - time.perf_counter()
        if left < part.share * second / 2:
            findings.not_measured.append(f"{part.what}, {part.title}: no time was left for it")
            continue
        say(f"{part.what}, {part.title} ...")
        mine = left * part.share / sum(later.share for later in parts[number:])
        here = replace(
            setting,
            batch_size=part.batch_size,
            latent_size=part.latent_size,
            memory_budget=part.memory_budget,
            until=time.perf_counter() + mine,
        )
        try:
            found = MEASURES[part.what](on_device, here, rate)
            findings.add(bounded(found, here, name, parameters).titled(part.title))
        except torch.OutOfMemoryError:
            findings.not_measured.append(f"{part.what}, {part.title}: it does not fit into memory")
        except RuntimeError as error:  # of torch or its compiler: what the other parts have found is kept
            traceback.print_exception(error)
            findings.not_measured.append(f"{part.what}, {part.title}: it failed, see above: {type(error).__name__}")
        forget(setting.device)
    return findings


def _steps(network: Callable[[], UNet], setting: Setting, rate: float | None) -> Findings:
    """Ours alone."""
    made = network()
    return Findings(facts=our_steps(made, setting).facts(made.config, setting, rate))


MEASURES: dict[str, Callable[[Callable[[], UNet], Setting, float | None], Findings]] = {
    "train": lambda network, setting, rate: bench_train(network(), setting, rate),
    "steps": _steps,
    "capped": lambda network, setting, rate: bench_capped(network, setting),
    "encode": lambda network, setting, rate: bench_encode(setting),
    "sample": lambda network, setting, rate: bench_sample(network(), setting),
}

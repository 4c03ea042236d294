"""What an H200 has to reach, at the sizes that the figures are meant for. Nothing is asked of other devices."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from sdscratch.bench.capped import FITS, SLOWDOWN
from sdscratch.bench.encode import PICTURES
from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.sample import STEPS_PER_SECOND
from sdscratch.bench.setting import Setting
from sdscratch.bench.steps import FIRST_STEP, IMAGES, PEAK_MEMORY
from sdscratch.bench.train import LARGE

DEVICE = "H200"


class Bound(NamedTuple):
    """floor: what may not be fallen short of. The rest: what it is asked of; None: of any.

    memory_budget: to keep fewer activations takes time.
    """

    title: str
    floor: float
    goal: float | None
    more_is_better: bool
    latent_size: int
    batch_size: int | None = None
    memory_budget: float | None = None

    def is_for(self, title: str, setting: Setting) -> bool:
        """Whether it is asked of a fact with this title."""
        asked = {"title": title, **vars(setting)}
        wanted = {name: getattr(self, name) for name in ("title", "latent_size", "batch_size", "memory_budget")}
        return all(value in (None, asked[name]) for name, value in wanted.items())


BOUNDS = (
    Bound(IMAGES, 150, 180, True, 64, 64, 1.0),
    Bound(IMAGES, 550, 700, True, 32, 256, 1.0),
    Bound(PEAK_MEMORY, 80, 60, False, 64, 64),
    Bound(FIRST_STEP, 60, None, False, 64, 64, 1.0),
    Bound(FITS, 1, None, True, 64, 16),
    Bound(SLOWDOWN, 0.25, 0.10, False, 64, 16),
    Bound(PICTURES, 150, 300, True, 64),
    Bound(STEPS_PER_SECOND, 66, 100, True, 64),  # always of a single picture
)
"""In bfloat16, of networks of Stable Diffusion's size."""


def bounded(findings: Findings, setting: Setting, device: str, parameters: int) -> Findings:
    """With floors and goals for the facts that they are meant for. device: its name. parameters: of the network."""
    if DEVICE not in device or parameters < LARGE or setting.precision != "bf16-mixed":
        return findings
    return replace(findings, facts=[_bounded(fact, setting) for fact in findings.facts])


def _bounded(fact: Fact, setting: Setting) -> Fact:
    for bound in BOUNDS:
        if bound.is_for(fact.title, setting):
            return replace(fact, floor=bound.floor, goal=bound.goal, more_is_better=bound.more_is_better)
    return fact

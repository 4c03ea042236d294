"""How far a number would move with other samples of the same kind: intervals by resampling."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdscratch.randomness import key

COVERAGE = 0.95
ANYWHERE, SHARE = (-math.inf, math.inf), (0.0, 1.0)  # what a statistic can be


class Estimate(NamedTuple):
    """A number, the interval that holds it in COVERAGE of the cases, and how many samples it is of. None: not resampled."""

    value: float
    low: float | None
    high: float | None
    samples: int


def mean(values: Tensor) -> float:
    """The statistic of measures that each sample has alone; values (N,)."""
    return float(values.double().mean())


def estimate(
    statistic: Callable[..., float],
    *samples: Tensor,
    replicates: int,
    paired: bool = False,
    within: tuple[float, float] = ANYWHERE,
    seed: int = 0,
) -> Estimate:
    """The statistic of `samples`, tensors with a row per sample, resampled `replicates` times; 0: no interval.

    The replicates' quantiles are moved so that their mean is the value: resampling repeats pictures, which by itself raises
    distances between sets such as FID. Counted are the rows of the last tensor.
    paired: rows of the same number belong together, and are resampled so; else each tensor is by itself. within: what the
    statistic can be, beyond which its interval does not reach.
    """
    value, number = statistic(*samples), len(samples[-1])
    if not replicates:
        return Estimate(value, None, None, number)
    draw = np.random.Generator(np.random.Philox(key(seed, "bootstrap", 0)))
    found = np.array([statistic(*_resampled(samples, draw, paired)) for _ in range(replicates)])
    low, high = value - found.mean() + np.quantile(found, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    low, high = np.clip([low, high], *within)
    return Estimate(value, float(low), float(high), number)


def _resampled(samples: Sequence[Tensor], draw: np.random.Generator, paired: bool) -> list[Tensor]:
    sizes = [len(sample) for sample in samples]
    if paired:
        rows = [draw.integers(sizes[0], size=sizes[0])] * len(sizes)
    else:
        rows = [draw.integers(size, size=size) for size in sizes]
    return [sample[torch.from_numpy(chosen)] for sample, chosen in zip(samples, rows, strict=True)]

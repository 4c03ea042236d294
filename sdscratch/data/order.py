"""What comes at a position: the order of samples over the whole run, computed, never stored.

An order has one method, `at(position) -> sample number`. A mixture of several sources (see mixture.py) is one more such map,
from a position to (source, position within the source).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from sdscratch.errors import DataError
from sdscratch.randomness import permutation


def data_step(step: int, skipped: Sequence[Sequence[int]] = ()) -> int:
    """Whose positions optimizer step `step` (from 0) reads: its own, moved past every skipped range of steps.

    skipped: (first, end) of data steps that are never read, end excluded; in rising order, without overlap.
    """
    for first, end in skipped:
        if first <= step:
            step += end - first
    return step


def skip(skipped: Sequence[Sequence[int]], first: int, end: int) -> list[list[int]]:
    """`skipped` with the range (first, end) added, in order again, and ranges that meet made one."""
    merged: list[list[int]] = []
    for a, b in sorted([*map(list, skipped), [first, end]]):
        if merged and a <= merged[-1][1]:
            merged[-1][1] = max(b, merged[-1][1])
        else:
            merged.append([a, b])
    return merged


class SampleOrder(Protocol):
    """Positions 0, 1, 2, ... without end -> sample numbers."""

    def at(self, position: int) -> int: ...


class SequentialOrder:
    """Samples as they lie on disk, again from the start after the last."""

    def __init__(self, samples: int):
        self.samples = _not_empty(samples)

    def at(self, position: int) -> int:
        return position % self.samples


class Order:
    """Each epoch: shards in a random order, then samples shuffled within windows of `window` shards.

    Reads stay near-sequential (at any time only `window` shards are read from), every epoch holds every sample once,
    and memory grows with the window and the number of shards, never with the number of samples.

    shard_sizes: samples per shard; sample numbers count through the shards in that sequence.
    """

    def __init__(self, shard_sizes: Sequence[int] | np.ndarray, seed: int, window: int = 4):
        self.shard_sizes = np.asarray(shard_sizes, dtype=np.int64)
        self.samples = _not_empty(int(self.shard_sizes.sum()))
        self.seed, self.window = seed, window
        self._first_sample = np.cumsum(self.shard_sizes) - self.shard_sizes
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._windows: dict[tuple[int, int], np.ndarray] = {}

    def at(self, position: int) -> int:
        epoch, i = divmod(position, self.samples)
        shards, ends = self._epoch(epoch)
        number = int(np.searchsorted(ends, i, side="right"))
        start = int(ends[number - 1]) if number else 0
        return int(self._window(epoch, number, shards)[i - start])

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards of an epoch in order, and the place after the last sample of each of its windows."""
        if epoch not in self._epochs:
            shards = permutation(self.seed, "order/shards", epoch, len(self.shard_sizes))
            sizes = np.add.reduceat(self.shard_sizes[shards], np.arange(0, len(shards), self.window))
            self._epochs = last_few(self._epochs) | {epoch: (shards, np.cumsum(sizes))}
        return self._epochs[epoch]

    def _window(self, epoch: int, number: int, shards: np.ndarray) -> np.ndarray:
        """The sample numbers of one window, shuffled: int64."""
        if (epoch, number) not in self._windows:
            inside = shards[number * self.window : (number + 1) * self.window]
            samples = np.concatenate([self._first_sample[s] + np.arange(self.shard_sizes[s]) for s in inside])
            shuffled = samples[permutation(self.seed, f"order/window{number}", epoch, len(samples))]
            self._windows = last_few(self._windows) | {(epoch, number): shuffled}
        return self._windows[epoch, number]


def last_few(cache: dict, keep: int = 2) -> dict:
    """Workers run a little ahead of each other, so two neighbours are kept besides the newest."""
    return dict(list(cache.items())[-keep:])


def _not_empty(samples: int) -> int:
    if samples < 1:
        raise DataError("the data set holds no samples. Expected at least one; check dataset.path and dataset.holdout.")
    return samples

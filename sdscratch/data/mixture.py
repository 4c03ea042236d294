"""Several sources in one order: position -> (source, position within the source), in exact shares.

How many samples of each source every global batch holds is computed once, for one period of the shares; whatever else is
asked follows from the position alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np
from torch.utils.data import Dataset

from sdscratch.data.batch import Sample
from sdscratch.data.dataset import ShardDataset
from sdscratch.data.order import last_few
from sdscratch.errors import ConfigError
from sdscratch.randomness import permutation

MOST_BATCHES = 1 << 16
"""The longest period. Shares that would repeat later only drift by less than one sample in each of these."""


class Mixture:
    """After every global batch, each source has given its share of all samples so far, to within one sample.

    That holds at every batch, from the first on; positions within a source are 0, 1, 2, ... without gaps. Inside a batch the
    sources come in a random order, keyed by (seed, batch).

    shares: above 0, in any unit: (3, 1) is three quarters and one quarter. See `apportion` for how samples are given out.
    """

    def __init__(self, shares: Sequence[Fraction | int], global_batch_size: int, seed: int) -> None:
        self.global_batch_size, self.seed = global_batch_size, seed
        weights = whole_shares(shares, MOST_BATCHES * global_batch_size)
        period = sum(weights) // gcd(sum(weights), global_batch_size)  # batches after which all shares are exact
        self._taken = apportion(weights, global_batch_size, min(period, MOST_BATCHES))
        self._recent: dict[int, list[tuple[int, int]]] = {}  # batches, as lists of (source, position within it)

    def taken(self, batch: int) -> np.ndarray:
        """Samples of each source before batch number `batch` (from 0): int64 (sources,)."""
        periods, rest = divmod(batch, len(self._taken) - 1)
        return periods * self._taken[-1] + self._taken[rest]

    def at(self, position: int) -> tuple[int, int]:
        """The number of the source, and the position within it."""
        number, i = divmod(position, self.global_batch_size)
        if number not in self._recent:
            sources, within = self.batch(number)
            self._recent = last_few(self._recent) | {number: list(zip(sources.tolist(), within.tolist(), strict=True))}
        return self._recent[number][i]

    def batch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Of a whole global batch: the sources, and the positions within them; both int64 (global_batch_size,)."""
        first = self.taken(number)
        counts = self.taken(number + 1) - first
        size = self.global_batch_size
        sources = np.repeat(np.arange(len(counts)), counts)[permutation(self.seed, "mixture", number, size)]
        within = np.empty(size, np.int64)
        rank = np.arange(size) - np.repeat(np.cumsum(counts) - counts, counts)
        within[np.argsort(sources, kind="stable")] = np.repeat(first, counts) + rank
        return sources, within


class MixtureDataset(Dataset[Sample]):
    """`dataset[position]`: the sample that the mixture has there, with the draws of `position`. See ShardDataset.

    parts: in the sequence of the mixture's sources, each with an order of its own.
    """

    def __init__(self, mixture: Mixture, parts: Sequence[ShardDataset]) -> None:
        self.mixture, self.parts = mixture, parts

    def __getitem__(self, position: int) -> Sample:
        number, within = self.mixture.at(position)
        part = self.parts[number]
        return part.load(part.order.at(within), position)

    def key(self, position: int) -> str:
        """The name of the sample at `position`, as it is ordered."""
        number, within = self.mixture.at(position)
        return self.parts[number].key(within)


def apportion(weights: Sequence[int], batch_size: int, batches: int) -> np.ndarray:
    """How many samples of each source come before each batch: int64 (batches + 1, sources), nothing before the first.

    weights: whole numbers above 0; after n samples, source i is to have given q_i = n * weights[i] / sum(weights).
    After every batch it has given q_i rounded down or up, and never takes one back: each source gets what it must have by
    now, and what is left of the batch goes to those that would soonest have to be given one more. A sequence within one
    sample of all shares exists (Tijdeman, "The chairman assignment problem", 1980), and where each sample has a
    batch before which it may not and a batch after which it must not come, earliest deadline first finds it.
    """
    total, sources = sum(weights), range(len(weights))
    taken = np.zeros((batches + 1, len(weights)), np.int64)
    now = [0] * len(weights)
    for batch in range(1, batches + 1):
        samples = batch * batch_size
        now = [max(now[i], samples * weights[i] // total) for i in sources]
        open_to = [i for i in sources if now[i] * total < samples * weights[i]]
        deadlines = {i: -(-(now[i] + 1) * total // (weights[i] * batch_size)) for i in open_to}
        for i in sorted(open_to, key=deadlines.__getitem__)[: samples - sum(now)]:
            now[i] += 1
        taken[batch] = now
    return taken


def whole_shares(shares: Sequence[Fraction | int], finest: int) -> list[int]:
    """The shares as the smallest whole numbers. Raises ConfigError for one below 1 / `finest` of their sum."""
    fractions = [Fraction(share) for share in shares]
    if not fractions or min(fractions) * finest < sum(fractions):
        raise ConfigError(
            f"the shares {', '.join(str(float(share)) for share in fractions)} cannot be mixed: expected at least one, and "
            f"each at least 1/{finest} of their sum. Leave out what is hardly ever read"
        )
    scale = lcm(*(share.denominator for share in fractions))
    whole = [int(share * scale) for share in fractions]
    return [number // gcd(*whole) for number in whole]

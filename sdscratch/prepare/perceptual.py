"""Pictures that look alike, by perceptual hashes: 64 bits of which few differ when a picture was scaled or compressed again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import imagehash
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sdscratch.data.captions import record_of
from sdscratch.data.images import image_member, open_image
from sdscratch.data.index import ShardIndex
from sdscratch.errors import DataError
from sdscratch.prepare.engine import Engine, map_shards

BITS = 64
AT_ONCE = 2048  # hashes compared with as many others
SAMPLES = 1000  # to a task


def hashes_of(
    path: Path,
    engine: Engine = "local",
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ma.MaskedArray:
    """The hash of every sample of a folder, uint64 (samples,): its record's `phash`, else its picture's own.

    Masked where a picture cannot be decoded. Raises DataError for latents whose records hold no hash.
    """
    count = len(ShardIndex.open(path))
    hashes = np.ma.masked_all(count, np.uint64)
    ranges, done = [range(first, min(first + SAMPLES, count)) for first in range(0, count, SAMPLES)], 0
    for numbers, found in map_shards(partial(_hashes, path), ranges, engine, workers):
        hashes[numbers.start : numbers.stop] = found
        progress(done := done + len(numbers), count)
    return hashes


def _hashes(path: Path, numbers: range) -> tuple[range, np.ma.MaskedArray]:
    index, found = ShardIndex.open(path), np.ma.masked_all(len(numbers), np.uint64)
    for place, n in enumerate(numbers):
        members = index.read(n)
        known = record_of(members).get("phash")
        if isinstance(known, str) and len(known) == BITS // 4:
            found[place] = int(known, 16)
        elif index.kind == "latents":
            raise DataError(
                f"{index.where(n)}: its record has no phash. Look for duplicates among the pictures instead."
            )
        else:
            try:
                found[place] = int(str(imagehash.phash(open_image(image_member(members), at_least=BITS))), 16)
            except DataError:
                continue  # `data verify` names it
    return numbers, found


def groups(hashes: np.ndarray, distance: int) -> np.ndarray:
    """A number for each of the hashes, equal for those that chains of neighbours within `distance` bits connect."""
    distinct, which = np.unique(hashes, return_inverse=True)
    pairs = near(distinct, distance)
    links = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(len(distinct),) * 2)
    return connected_components(links, directed=False)[1][which]


def near(hashes: np.ndarray, distance: int) -> np.ndarray:
    """All pairs (i < j) of `hashes` (uint64, distinct) that differ in at most `distance` bits: int64 (pairs, 2).

    Cut into distance + 1 pieces, two such hashes agree in one piece at least: only those that do are compared.
    """
    found = [np.empty((0, 2), np.int64)]
    if not len(hashes):
        return found[0]
    bounds = np.linspace(0, BITS, distance + 2).astype(np.uint64)
    for low, high in pairwise(bounds):
        piece = (hashes >> low) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(piece, kind="stable")
        ends = np.flatnonzero(np.diff(piece[order], append=piece[order[-1:]] + np.uint64(1))) + 1
        starts = np.concatenate([[0], ends[:-1]])
        for start, end in zip(*np.stack([starts, ends])[:, ends - starts > 1], strict=True):
            found += _compare(hashes, np.sort(order[start:end]), distance)
    return np.unique(np.concatenate(found), axis=0)


def _compare(hashes: np.ndarray, members: np.ndarray, distance: int) -> Sequence[np.ndarray]:
    found = []
    for first in range(0, len(members), AT_ONCE):
        some = members[first : first + AT_ONCE]
        for second in range(first, len(members), AT_ONCE):
            others = members[second : second + AT_ONCE]
            close = np.bitwise_count(hashes[some, None] ^ hashes[None, others]) <= distance
            i, j = some[np.nonzero(close)[0]], others[np.nonzero(close)[1]]
            found.append(np.stack([i, j], axis=1)[i < j])
    return found

"""Duplicates within a folder of shards, and of the samples of other folders."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sdscratch.data.index import ShardIndex
from sdscratch.errors import check_whole
from sdscratch.files import write_atomically
from sdscratch.prepare.engine import Engine
from sdscratch.prepare.perceptual import BITS, groups, hashes_of
from sdscratch.prepare.select import keep

FURTHEST = 16  # bits; beyond, most pictures are near some other
DUPLICATES = "duplicates.csv"


class Duplicate(NamedTuple):
    """A sample, the one that stands for it, the folder of that one, and how many bits their hashes differ in."""

    key: str
    of: str
    folder: str
    distance: int


@dataclass(frozen=True)
class Findings:
    """samples: how many were looked at, of which `unreadable` could not be decoded and count as unique."""

    samples: int
    unreadable: int
    duplicates: list[Duplicate]
    kept: np.ndarray  # numbers of the samples that are no duplicates


def find_duplicates(
    path: Path,
    against: Sequence[Path] = (),
    distance: int = 6,
    engine: Engine = "local",
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Which samples of `path` look like an earlier one of it, or like one of the folders `against`.

    distance: bits of 64 in which neighbours may differ; chains of neighbours are one group, of which the first is kept,
        or none where a folder of `against` has one of it.
    """
    check_whole("distance", distance, least=0, most=FURTHEST)
    folders = [*against, path]  # what is earlier stands for what is later
    found = [hashes_of(folder, engine, workers, progress) for folder in folders]
    folder_of = np.repeat(np.arange(len(folders)), [len(hashes) for hashes in found])
    number_of = np.concatenate([np.arange(len(hashes)) for hashes in found])
    hashes = np.ma.concatenate(found)
    known = np.flatnonzero(~np.ma.getmaskarray(hashes))
    group = groups(np.ma.getdata(hashes)[known], distance)
    _, firsts = np.unique(group, return_index=True)
    stands_for = known[firsts[group]]

    indexes = [ShardIndex.open(folder) for folder in folders]
    own = folder_of[known] == len(folders) - 1
    duplicates, dropped = list[Duplicate](), list[int]()
    for n, first in zip(known[own], stands_for[own], strict=True):
        if n != first:
            dropped.append(int(number_of[n]))
            bits = int(np.bitwise_count(hashes.data[n] ^ hashes.data[first]))
            of = indexes[folder_of[first]].key(number_of[first])
            duplicates.append(Duplicate(indexes[-1].key(dropped[-1]), of, str(folders[folder_of[first]]), bits))
    count = len(found[-1])
    kept = np.setdiff1d(np.arange(count), dropped)
    return Findings(count, int(np.ma.getmaskarray(found[-1]).sum()), duplicates, kept)


def keep_unique(path: Path, out: Path, findings: Findings, distance: int, against: Sequence[Path] = ()) -> None:
    """Write to `out` the selection of the samples that are kept, and duplicates.csv about the others."""
    known = "".join(f" or of {folder}" for folder in against)
    keep(path, out, f"no duplicates within {distance} of {BITS} bits, of its own{known}", findings.kept)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerows([Duplicate._fields, *findings.duplicates])
    write_atomically(out / DUPLICATES, lambda file: file.write(table.getvalue().encode()))

"""Reads a folder of shards as a whole and says what is wrong with it: bytes, counts, members, pictures, latents, captions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import BinaryIO, NamedTuple

from sdscratch.data import latents, text_states
from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.images import image_member, open_image
from sdscratch.data.index import ShardIndex, samples_of
from sdscratch.data.manifest import MANIFEST, Kind, Manifest, Shard
from sdscratch.data.selection import Selection
from sdscratch.data.shards import BAD, DROPPED, UNFINISHED, Members
from sdscratch.errors import DataError
from sdscratch.prepare.engine import Engine, map_shards
from sdscratch.prepare.moments import Moments

ALIKE = 1.5
"""How far a shard's standard deviation of latents may be from the folder's, as a ratio: all are of one VAE."""


class Problem(NamedTuple):
    """What is wrong with a shard, or with the sample `key` in it."""

    shard: str
    key: str
    what: str

    def __str__(self) -> str:
        return f"{self.shard}{': ' if self.key else ''}{self.key}: {self.what}"


@dataclass
class Found:
    """What a shard turned out to hold."""

    shard: str
    keys: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    moments: Moments = field(default_factory=Moments)
    states: tuple[int, ...] = ()  # (T, D) of the captions' states; () where there are none

    def wrong(self, what: str, key: str = "") -> None:
        """Note a problem."""
        self.problems.append(Problem(self.shard, key, what))


@dataclass(frozen=True)
class Verdict:
    """What a folder turned out to hold.

    shards, samples: how many were read. dropped: samples that were left out, as the manifest counts them. known_bad:
    those in adopted tars that are no use, as was said when they were adopted. std: of the latents, unscaled; None of images.
    """

    shards: int
    samples: int
    dropped: int
    known_bad: int
    std: float | None
    problems: list[Problem]


def verify(
    folder: Path,
    decode: bool = True,
    engine: Engine = "local",
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Verdict:
    """Read every shard of `folder`, or of the folder it selects from, and compare it with the manifest.

    decode: decode every picture, too, which takes most of the time. progress: called with shards done, and all.
    Raises DataError where there is nothing to compare with: no folder, no manifest, or one that makes no sense.
    """
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}: expected one of shards")
    if (selection := Selection.read(folder)) is not None:
        ShardIndex.open(folder)  # refuses one that does not fit its source any more
        folder = selection.source_of(folder)
    manifest = Manifest.read(folder)
    if manifest is None and (folder / UNFINISHED).exists():
        raise DataError(f"{folder} was never finished. Run the command that writes it again.")
    if manifest is None:
        raise DataError(
            f"{folder} has no {MANIFEST} to be compared with. Tars of another origin get one by "
            f"`sdscratch data pack kind=webdataset path={folder}`."
        )
    expected = {shard.name: shard for shard in manifest.shards}
    extra = sorted(path.name for path in folder.glob("*.tar") if path.name not in expected)
    found = list[Found]()
    read = partial(_read, folder, manifest.kind, bool(manifest.made_by.get("text")), decode)
    for shard in map_shards(read, manifest.shards, engine, workers):
        found.append(shard)
        progress(len(found), len(expected))
    found.sort(key=lambda shard: shard.shard)

    problems = [Problem(name, "", "it is not in the manifest") for name in extra]
    known = _known_bad(folder)
    problems += [problem for shard in found for problem in shard.problems if problem[:2] not in known]
    problems += [*_twice(found), *_unlike(found), *_uncounted(folder, manifest)]
    usual = _usual(shard.moments.shape for shard in found)
    moments = sum((shard.moments for shard in found if shard.moments.shape == usual), Moments())
    std = moments.std if moments.samples else None
    samples = sum(len(shard.keys) for shard in found)
    return Verdict(len(found), samples, sum(manifest.dropped.values()), len(known), std, problems)


def _read(folder: Path, kind: Kind, with_states: bool, decode: bool, expected: Shard) -> Found:
    """with_states: every sample must hold its captions' states."""
    path, found = folder / expected.name, Found(expected.name)
    if path.exists() and not path.is_file():  # to open a pipe would be to wait for ever
        found.wrong("it is no file")
        return found
    try:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != expected.sha256:
                found.wrong(f"its {path.stat().st_size} bytes are not those that were written ({expected.size} bytes)")
            for key, places in samples_of(path):
                found.keys.append(key)
                members = {suffix: _at(file, *place) for suffix, place in places.items()}
                try:
                    _check(members, kind, with_states, decode, found)
                except DataError as error:
                    found.wrong(str(error), key)
    except OSError as error:
        found.wrong(f"it cannot be read: {error.strerror}")
    except DataError as error:  # of the tar itself
        found.wrong(str(error).replace(str(path), "it", 1))
    if not found.problems and len(found.keys) != expected.samples:
        found.wrong(f"it holds {len(found.keys)} samples, the manifest says {expected.samples}")
    return found


def _at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _check(members: Members, kind: Kind, with_states: bool, decode: bool, found: Found) -> None:
    """Raise DataError unless a sample can be trained on."""
    if not (captions := captions_of(members, record_of(members))):
        raise DataError("it has no caption")
    if kind == "images":
        picture = image_member(members)
        if decode:
            open_image(picture)
        return
    if "latent.npy" not in members:
        raise DataError("it has no latents")
    found.moments.add(latents.unpack(members["latent.npy"]))
    if "text.npy" in members:
        shape = text_states.unpack(members["text.npy"], len(captions)).shape[1:]
        if found.states not in ((), shape):
            raise DataError(f"its captions' states are of {shape}, those before of {found.states}")
        found.states = shape
    elif with_states:
        raise DataError("it has no captions' states")


def _twice(found: list[Found]) -> Iterator[Problem]:
    first = dict[str, str]()
    for shard in found:
        for key, times in Counter(shard.keys).items():
            if times > 1 or key in first:
                yield Problem(shard.shard, key, f"this key is in {first.get(key, shard.shard)} already")
            first.setdefault(key, shard.shard)


def _unlike(found: list[Found]) -> Iterator[Problem]:
    """Shards whose latents or states have another shape or spread than most: of another network, another size, or scaled."""
    latent = [shard for shard in found if shard.moments.samples]
    shape, states = _usual(shard.moments.shape for shard in found), _usual(shard.states for shard in found)
    usual = median(shard.moments.std for shard in latent) if latent else 0.0
    for shard in latent:
        if shard.moments.shape != shape:
            yield Problem(shard.shard, "", f"its latents are of {shard.moments.shape}, most shards' of {shape}")
        if shard.states not in ((), states):
            yield Problem(shard.shard, "", f"its captions' states are of {shard.states}, most shards' of {states}")
        if not usual / ALIKE <= (std := shard.moments.std) <= usual * ALIKE:
            yield Problem(
                shard.shard, "", f"its latents have a standard deviation of {std:.3g}, most shards {usual:.3g}"
            )


def _usual(shapes: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The most frequent one; () where there is none."""
    counted = Counter(filter(None, shapes))
    return counted.most_common(1)[0][0] if counted else ()


def _known_bad(folder: Path) -> set[tuple[str, str]]:
    """(shard, key) of the samples that `data pack kind=webdataset on_bad=quarantine` has named."""
    path = folder / BAD
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    try:
        return {(sample["shard"], sample["key"]) for sample in map(json.loads, lines)}
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({error!r}). Delete it and {MANIFEST}, and adopt the folder again."
        ) from error


def _uncounted(folder: Path, manifest: Manifest) -> Iterator[Problem]:
    """Samples that are neither in the shards nor named in dropped.jsonl must not be."""
    path, expected = folder / DROPPED, sum(manifest.dropped.values())
    lines = len(path.read_bytes().splitlines()) if path.is_file() else 0
    if lines != expected:
        yield Problem(DROPPED, "", f"it names {lines} samples, the manifest counts {expected} that were dropped")

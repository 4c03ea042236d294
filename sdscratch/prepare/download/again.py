"""What an earlier call has brought of a shard's rows, so that only the others are asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path

from sdscratch.data.captions import record_of
from sdscratch.data.index import OpenFiles, samples_of
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import DROPPED, Dropped, Noted, Sample, ShardFolder
from sdscratch.errors import DataError
from sdscratch.files import check_file, sha256_of
from sdscratch.prepare.download.url_rows import Row
from sdscratch.prepare.download.web import is_passing


def may_gain(folder: ShardFolder, name: str) -> bool:
    """Whether rows of a shard that is there fell for what may be over by now."""
    noted = folder.noted(name)
    return noted is not None and any(is_passing(sample.reason) for sample in noted.dropped)


def known(folder: ShardFolder, name: str, rows: Sequence[Row]) -> list[Sample | Dropped | None]:
    """Of each row of a shard what came of it; None for those to ask for: not asked yet, or fallen for what may be over.

    A tar without notes was written by a job that was killed right then: its samples count, all others are asked again.
    Raises DataError for a damaged tar, whose samples must not go into a new one.
    """
    path, noted = folder.path / name, folder.noted(name)
    kept, fell = dict[str, Sample](), list[Dropped]()
    if noted is None:
        kept = _by_key(path) if path.is_file() else {}
    elif folder.has(name):
        if noted.shard is not None and sha256_of(path) != noted.shard.sha256:
            raise DataError(f"{path} is damaged: delete it, and the same command downloads its rows again")
        kept, fell = _by_key(path) if noted.shard else {}, noted.dropped
    remaining = (None if is_passing(sample.reason) else sample for sample in fell)
    return [kept[row.key] if row.is_first and row.key in kept else next(remaining, None) for row in rows]


def reopen(folder: ShardFolder, manifest: Manifest, rows: Mapping[str, int]) -> None:
    """Take a finished folder for one that has all its shards but is not finished. rows: of each shard, in their sequence.

    Raises DataError where what fell cannot be read, and as ShardFolder.reopen does.
    """
    dropped = folder.path / DROPPED
    try:
        check_file(dropped)
    except OSError as error:
        raise DataError(
            f"{dropped} cannot be read ({error.strerror or error}): nothing says which rows to ask for again. Put it back"
        ) from error

    def notes() -> Iterator[tuple[str, Noted]]:
        shards = {shard.name: shard for shard in manifest.shards}
        with open(dropped, encoding="utf-8") as lines:
            for name, count in rows.items():
                shard = shards.get(name)
                fell = [Dropped(**json.loads(line)) for line in islice(lines, count - (shard.samples if shard else 0))]
                samples = _read(folder.path / name, only="json") if shard else ()
                yield (
                    name,
                    Noted.of(shard, ["images"] if shard else [], [record_of(members) for _, members in samples], fell),
                )

    folder.reopen(notes())


def _by_key(path: Path) -> dict[str, Sample]:
    return {sample[0]: sample for sample in _read(path)}


def _read(path: Path, only: str = "") -> Iterator[Sample]:
    """The samples of a tar; of one member each, where `only` names its suffix."""
    files = OpenFiles()
    for key, places in samples_of(path):
        yield key, {s: files.read(str(path), *place) for s, place in places.items() if only in ("", s)}

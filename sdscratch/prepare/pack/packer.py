"""Collections -> image shards. Archives are read where they lie; what was written before a stop is not made again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from glob import escape
from itertools import chain, count, islice
from pathlib import Path
from typing import Literal, get_args

from sdscratch.data.captions import captions_of
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import Dropped, Sample, ShardFolder, check_shard_size
from sdscratch.errors import DataError, check_choice
from sdscratch.prepare.engine import Engine, map_shards
from sdscratch.prepare.pack.found import Collection, Found, Part
from sdscratch.prepare.pictures import Form, Picture
from sdscratch.prepare.refusal import Refused

OnBad = Literal["fail", "quarantine"]


@dataclass(frozen=True)
class Packer:
    """How a collection becomes shards.

    form: what pictures are stored as. shard_size: pictures that are looked at for one shard; those that are dropped
    leave it smaller. on_bad: a picture that cannot be decoded stops everything ("fail"), or is dropped ("quarantine").
    engine, workers: as in map_shards. progress: called with the parts done, and all.
    """

    form: Form
    shard_size: int = 1000
    on_bad: OnBad = "fail"
    engine: Engine = "local"
    workers: int = 0
    progress: Callable[[int, int], None] = lambda done, total: None

    def __post_init__(self) -> None:
        check_shard_size(self.shard_size)
        check_choice("on_bad", self.on_bad, get_args(OnBad))

    def pack(self, collection: Collection, out: Path) -> Manifest:
        """Write the collection's pictures to `out`; what is there already is left alone.

        Raises DataError for a collection that is not as it was published, for a bad picture, naming it, or when `out`
        holds something else.
        """
        made_by = {"by": "pack", **collection.identity(), **asdict(self.form), "shard_size": self.shard_size}
        parts = collection.parts(self.shard_size)
        if not parts:
            raise DataError(f"there is nothing to pack: {made_by}")
        folder = ShardFolder(out, made_by)
        if (manifest := folder.claim()) is not None:
            return manifest
        write = partial(_write, folder, self.shard_size, self.form, collection.margin, self.on_bad)
        names = dict[str, list[str]]()
        self.progress(0, len(parts))
        for part, written in map_shards(write, parts, self.engine, self.workers):
            names[part] = written
            self.progress(len(names), len(parts))
        return folder.finish([name for part in parts for name in names[part.name]])


def _write(
    folder: ShardFolder, shard_size: int, form: Form, margin: float, on_bad: OnBad, part: Part
) -> tuple[str, list[str]]:
    """Write those shards of a part that are not there yet; its name, and the names of all its shards."""
    samples = partial(_samples, form, margin, on_bad)
    if part.is_shard:
        name = f"{part.name}.tar"
        if not folder.has(name):
            folder.write(name, samples(_once(part.found())))
        return part.name, [name]

    # How many shards an archive fills is known when it was read to its end. An empty one after them says so.
    end = f"{part.name}-end.tar"
    if folder.has(end):
        written = folder.path.glob(f"{escape(part.name)}-{'[0-9]' * 5}.tar.json")
        names = sorted(path.name.removesuffix(".json") for path in written)
        if all(folder.has(name) for name in names):
            return part.name, [*names, end]
    names, found = list[str](), _once(part.found())
    for number in count():
        if (first := next(found, None)) is None:
            break
        names.append(f"{part.name}-{number:05d}.tar")
        stretch = chain([first], islice(found, shard_size - 1))
        if folder.has(names[-1]):
            for _ in stretch:
                pass
        else:
            folder.write(names[-1], samples(stretch))
    folder.write(end, [])
    return part.name, [*names, end]


def _once(found: Iterator[Found | Dropped]) -> Iterator[Found | Dropped]:
    """Of pictures of one key the first counts, whatever becomes of it; the others are dropped, and so accounted for."""
    seen = set[str]()
    for item in found:
        again = isinstance(item, Found) and item.key in seen
        yield Dropped(item.key, "comes twice", item.where) if again else item  # type: ignore[union-attr]
        seen.add(item.key)


def _samples(form: Form, margin: float, on_bad: OnBad, found: Iterator[Found | Dropped]) -> Iterator[Sample | Dropped]:
    for item in found:
        yield item if isinstance(item, Dropped) else _sample(form, margin, on_bad, item)


def _sample(form: Form, margin: float, on_bad: OnBad, found: Found) -> Sample | Dropped:
    captions = captions_of({}, found.record)
    if not captions:
        return Dropped(found.key, "no caption", found.where)
    try:
        picture = _stored(form, margin, found)
    except Refused as refused:
        if refused.reason == "not decodable" and on_bad == "fail":
            raise DataError(
                f"{found.where} is a bad picture: {refused.detail}. "
                "Mend it, or set on_bad=quarantine to leave such pictures out."
            ) from refused
        return Dropped(found.key, refused.reason, f"{found.where}: {refused.detail}")
    record = json.dumps(found.record | picture.known() | {"captions": captions}, ensure_ascii=False, default=str)
    return found.key, {picture.suffix: picture.data, "json": record.encode(errors="replace")}


def _stored(form: Form, margin: float, found: Found) -> Picture:
    try:
        data = found.read()
    except DataError as error:
        raise Refused("not decodable", str(error)) from error
    return form.store(data, found.box, margin)

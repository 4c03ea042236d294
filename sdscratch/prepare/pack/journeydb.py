"""JourneyDB: tgz archives of some twenty thousand pictures each, and their prompts, a line of JSON for each picture.

PATH/imgs/000.tgz: ./000/a6ea3be9-....jpg, ...     PATH is data/train or data/valid of what is published
PATH/train_anno_realease_repath.jsonl.tgz, or what is in it: {"img_path": "./000/a6....jpg", "prompt": ..., "Task2": ...}
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sdscratch.data import tar
from sdscratch.data.shards import Dropped
from sdscratch.errors import DataError, check_choice
from sdscratch.files import fingerprint_of
from sdscratch.prepare.pack.found import (
    MAX_BYTES,
    Found,
    fingerprint_of_files,
    is_picture,
    key_of,
    require_folder,
)

LICENCE = "JourneyDB: research only"


@dataclass(frozen=True)
class JourneyDB:
    """path: holds the folder `imgs` and the annotations: what `annotations` names, or else the one file *_repath.jsonl*.

    caption: "prompt" for what the picture was asked for with, "caption" for what was said of it later, "both".
    """

    path: Path | str
    annotations: str | None = None
    caption: str = "prompt"
    margin = 0.0

    def __post_init__(self) -> None:
        check_choice("caption", self.caption, ("prompt", "caption", "both"))

    @cached_property
    def archives(self) -> list[str]:
        folder = require_folder(Path(self.path) / "imgs", "JourneyDB's 000.tgz and so on (set path=.../data/train)")
        return sorted(path.name for path in folder.glob("*.tgz") if path.is_file())

    @cached_property
    def annotations_file(self) -> Path:
        pattern = self.annotations or "*_repath.jsonl*"
        found = sorted(filter(Path.is_file, Path(self.path).glob(pattern)))
        if not found:
            raise DataError(f"no {pattern} in {self.path}: expected JourneyDB's annotations")
        return found[0]  # the .jsonl, where it lies beside the .jsonl.tgz that it came in

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "journeydb",
            "archives": fingerprint_of_files(Path(self.path) / "imgs", self.archives),
            "annotations": fingerprint_of(self.annotations_file),
            "caption": self.caption,
        }

    def parts(self, shard_size: int) -> Sequence[Archive]:
        if not self.archives:
            raise DataError(f"no tgz files in {Path(self.path) / 'imgs'}: expected JourneyDB as it is published.")
        return [Archive(Path(self.path) / "imgs" / name, self.annotations_file, self.caption) for name in self.archives]


@dataclass(frozen=True)
class Archive:
    """A tgz, read once from its beginning to its end, with the lines of the annotations that are about it."""

    path: Path
    annotations: Path
    caption: str
    is_shard: bool = False

    @property
    def name(self) -> str:
        return self.path.stem

    def found(self) -> Iterator[Found | Dropped]:
        records = self._records()
        for member, read in tar.compressed_members(self.path):
            if not is_picture(member.name):
                continue
            key, where = key_of(member.name), f"{self.path}: {member.name}"
            if member.name not in records:
                yield Dropped(key, "not annotated", where)
            elif member.size > MAX_BYTES:
                yield Dropped(key, "too large", where)
            else:
                yield Found(key, where, read, records[member.name])

    def _records(self) -> dict[str, dict[str, Any]]:
        """By the name in the archive. The lines of other archives are only skimmed."""
        mine = f"{self.name}/".encode()
        found = dict[str, dict[str, Any]]()
        for number, line in enumerate(_lines(self.annotations), start=1):
            if mine not in line:
                continue
            try:
                fields = json.loads(line)
                name, prompt = str(fields["img_path"]).removeprefix("./"), fields.get("prompt")
                caption = (fields.get("Task2") or {}).get("Caption")
            except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{self.annotations}, line {number} is no annotation of JourneyDB's: {error!r}"
                ) from error
            texts = {"prompt": [prompt], "caption": [caption], "both": [prompt, caption]}[self.caption]
            found[name] = {"captions": [text for text in texts if text], "source": "journeydb", "licence": LICENCE}
        return found


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a .jsonl, or of the one in a .tgz."""
    if path.suffix == ".tgz":
        yield from tar.compressed_lines(path, ".jsonl")
        return
    with open(path, "rb") as file:
        yield from file

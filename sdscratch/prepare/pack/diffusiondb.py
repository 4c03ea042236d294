"""DiffusionDB: zips of a thousand pictures each, and a table of their prompts.

PATH/metadata.parquet (or metadata-large.parquet): image_name, prompt, part_id, seed, ..., image_nsfw, prompt_nsfw
PATH/images/part-000001.zip: 2217ccbd-a1c6-47ac-9a2d-79649727c834.png, ..., part-000001.json
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from sdscratch.data.shards import Dropped
from sdscratch.errors import DataError, of_the_machine
from sdscratch.files import fingerprint_of
from sdscratch.prepare.pack.found import (
    MAX_BYTES,
    Found,
    fingerprint_of_files,
    is_picture,
    key_of,
    known,
    require_folder,
)

TABLES = ("metadata.parquet", "metadata-large.parquet")
KEPT = ("seed", "step", "cfg", "sampler", "image_nsfw", "prompt_nsfw")
"""What is known of a picture besides its prompt, under DiffusionDB's names; who asked for it, and when, is left out."""

_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, OSError)  # as zipfile says it


@dataclass(frozen=True)
class DiffusionDB:
    """path: any number of its zips, somewhere below it, and the table, without which each zip's own prompts count.

    A picture whose scores are 2 was blurred by the system that made it: `image_nsfw` in its record says so.
    """

    path: Path | str
    margin = 0.0

    @cached_property
    def archives(self) -> list[str]:
        root = require_folder(Path(self.path), "DiffusionDB's part-*.zip")
        found = sorted(str(path.relative_to(root)) for path in root.rglob("part-*.zip") if path.is_file())
        if len({Path(name).stem for name in found}) != len(found):
            raise DataError(f"{root} holds two zips of one name: expected each part of DiffusionDB once.")
        return found

    @cached_property
    def table(self) -> Path | None:
        return next((Path(self.path) / name for name in TABLES if (Path(self.path) / name).is_file()), None)

    def identity(self) -> dict[str, Any]:
        table = fingerprint_of(self.table) if self.table else None
        return {"kind": "diffusiondb", "archives": fingerprint_of_files(Path(self.path), self.archives), "table": table}

    def parts(self, shard_size: int) -> Sequence[Archive]:
        if not self.archives:
            raise DataError(f"no part-*.zip in {self.path}: expected DiffusionDB as it is published.")
        return [Archive(Path(self.path) / name, self.table) for name in self.archives]


@dataclass(frozen=True)
class Archive:
    """A zip with what is said of its pictures in `table`, or in itself."""

    path: Path
    table: Path | None
    is_shard: bool = False

    @property
    def name(self) -> str:
        return self.path.stem

    def found(self) -> Iterator[Found | Dropped]:
        try:
            archive = zipfile.ZipFile(self.path)
        except _BROKEN as error:
            if of_the_machine(error):
                raise
            raise DataError(f"{self.path} is damaged: {error}. Fetch it again.") from error
        with archive:
            infos = [info for info in archive.infolist() if is_picture(info.filename) and not _is_link(info)]
            rows = self._rows(archive)
            for info in sorted(infos, key=lambda info: (info.filename, info.header_offset)):
                name, base = info.filename, info.filename.rpartition("/")[2]
                key = f"{self.name}/{key_of(base)}"
                if base not in rows:
                    yield Dropped(key, "not in the table", f"{self.path}: {name}")
                    continue
                record = {"captions": rows[base].get("prompt"), "source": "diffusiondb", "licence": "CC0-1.0"}
                record |= known({column: rows[base].get(column) for column in KEPT})
                yield Found(key, f"{self.path}: {name}", partial(_read, archive, info), record)

    def _rows(self, archive: zipfile.ZipFile) -> dict[str, dict[str, Any]]:
        """What is said of this archive's pictures, by their names."""
        if self.table is None:
            return self._own_rows(archive)
        from pyarrow import ArrowException, parquet

        number = re.search(r"(\d+)$", self.name)
        try:
            columns = [
                column for column in ("image_name", "prompt", *KEPT) if column in parquet.read_schema(self.table).names
            ]
            mine = [("part_id", "=", int(number[1]))] if number else None
            rows = parquet.read_table(self.table, columns=columns, filters=mine).to_pylist()
            return {row["image_name"]: row for row in rows}
        except (ArrowException, KeyError, OSError) as error:
            raise DataError(
                f"{self.table} cannot be read as DiffusionDB's table: {' '.join(str(error).split())}"
            ) from error

    def _own_rows(self, archive: zipfile.ZipFile) -> dict[str, dict[str, Any]]:
        """A zip's own table has other names: p is the prompt, se the seed, c cfg, st the steps, sa the sampler."""
        table = next((info for info in archive.infolist() if info.filename.endswith(f"{self.name}.json")), None)
        if table is None:
            raise DataError(f"{self.path} holds no {self.name}.json, and there is no {TABLES[0]}: no prompts to be had")
        try:
            rows = json.loads(_read(archive, table))
            names = {"p": "prompt", "se": "seed", "c": "cfg", "st": "step", "sa": "sampler"}
            return {name: {names[k]: v for k, v in row.items() if k in names} for name, row in rows.items()}
        except (ValueError, RecursionError, AttributeError, DataError) as error:
            raise DataError(f"{self.path}: {table.filename} cannot be read: {error}") from error


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if info.file_size > MAX_BYTES:
        raise DataError(f"it has {info.file_size} bytes, allowed are {MAX_BYTES}")
    try:
        return archive.read(info)
    except _BROKEN as error:
        if of_the_machine(error):  # a disk that fails would else cost picture after picture
            raise
        raise DataError(f"it cannot be read from its zip: {error}") from error


def _is_link(info: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(info.external_attr >> 16)

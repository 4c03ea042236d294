"""A folder of pictures with their captions beside them, as anyone may have made it, or as Hugging Face's imagefolder is.

The caption of `a/b.jpg` is in the row of `b.jpg` in a/metadata.csv, .jsonl or .parquet (column `file_name`, a path
from there), or of `a/b.jpg` in one further up; else in a/b.json; else in a/b.txt. It is never made from names.
"""

from __future__ import annotations

import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.shards import Dropped
from sdscratch.errors import DataError
from sdscratch.files import fingerprint_of, walk
from sdscratch.prepare.pack.found import (
    Found,
    Slice,
    drawn,
    fingerprint_of_files,
    hash_key,
    is_picture,
    key_of,
    known,
    read_file,
    require_folder,
    slices,
)

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CAPTIONS = ("captions", "caption", "text", "prompt")
"""Fields that hold the caption, whatever their case; the first that there is."""

_SIDE_CARS = (".json", ".txt")


@dataclass(frozen=True)
class Folder:
    """path: the folder, read with all below it. source, licence: of pictures that say nothing of it themselves.

    caption: the field of the tables and .json files that holds the caption; None for the first of CAPTIONS with text in it.
    side_cars: whether .json and .txt files are looked at. limit: pictures, drawn by seed; None for all.
    """

    path: Path | str
    source: str
    licence: str = "unknown"
    caption: str | None = None
    side_cars: bool = True
    limit: int | None = None
    seed: int = 0
    margin = 0.0

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Everything below the folder that counts, as sorted paths from it; other files may come and go, such as shards."""
        root, found = str(require_folder(Path(self.path), "the pictures")), list[str]()
        for folder, folders, files in walk(Path(root)):
            folders[:] = [name for name in folders if not name.startswith(".")]
            prefix = "" if folder == root else folder[len(root) :].strip("/") + "/"
            pictures = {name.rpartition(".")[0] for name in files if is_picture(name)}
            found += [
                prefix + name
                for name in files
                if is_picture(name)
                or (name in TABLES and os.path.isfile(os.path.join(folder, name)))
                or (self._is_side_car(name) and name.rpartition(".")[0] in pictures)
            ]
        return tuple(sorted(found))

    def identity(self) -> dict[str, Any]:
        return {
            "kind": "folder",
            "files": fingerprint_of_files(Path(self.path), self.files),
            "tables": fingerprint_of(*(Path(self.path) / name for name in self._tables())),
            **{name: getattr(self, name) for name in ("source", "licence", "caption", "side_cars", "limit", "seed")},
        }

    def parts(self, shard_size: int) -> Sequence[Slice]:
        pictures = [name for name in self.files if is_picture(name)]
        if not pictures:
            raise DataError(f"no pictures in {self.path}: expected .jpg, .png or .webp files there or below.")
        keys = Counter(map(key_of, pictures))
        rows = self._rows()
        items = [
            (name, key_of(name) if keys[key_of(name)] == 1 else hash_key(name), rows.get(name))
            for name in drawn(pictures, self.limit, self.seed, "limit")
        ]
        return slices(items, shard_size, replace(self)._find)  # without the lists kept here: it travels

    def _find(self, items: Sequence[tuple[str, str, dict[str, Any] | None]]) -> Iterator[Found | Dropped]:
        for name, key, row in items:
            path = Path(self.path) / name
            fields = row if row is not None else self._beside(path) if self.side_cars else {}
            record = {"source": self.source, "licence": self.licence, **self._record(fields)}
            yield Found(key, str(path), lambda path=path: read_file(path), record)  # type: ignore[misc]

    def _record(self, fields: dict[str, Any]) -> dict[str, Any]:
        """The fields with the caption as `captions`, the licence under our spelling, and without `file_name`."""
        by_name = {name.lower(): name for name in reversed(fields)}
        wanted = CAPTIONS if self.caption is None else (self.caption.lower(),)
        holders = [by_name[name] for name in wanted if name in by_name]
        holder = next((name for name in holders if captions_of({}, {"captions": fields[name]})), None)
        others = {n: v for n, v in fields.items() if n != holder and n.lower() not in ("file_name", "license")}
        licence = fields.get(by_name.get("license", ""))
        captions = {"captions": fields[holder]} if holder is not None else {}
        return known({**({"licence": licence} if licence else {}), **others, **captions})

    def _beside(self, path: Path) -> dict[str, Any]:
        members = {}
        for suffix in _SIDE_CARS:
            if (file := path.with_suffix(suffix)).is_file():
                members[suffix[1:]] = read_file(file)
        fields = record_of(members)
        if "txt" in members and not captions_of({}, self._record(fields)):
            fields = {n: v for n, v in fields.items() if n.lower() not in CAPTIONS}
            fields["captions"] = captions_of(members, {})
        return fields

    def _tables(self) -> list[str]:
        return [name for name in self.files if name.rpartition("/")[2] in TABLES]

    def _is_side_car(self, name: str) -> bool:
        return self.side_cars and name.lower().endswith(_SIDE_CARS) and not name.startswith(".")

    def _rows(self) -> dict[str, dict[str, Any]]:
        """The rows of all tables, by the picture's path from the folder; those of tables further down count more."""
        found = dict[str, dict[str, Any]]()
        for table in sorted(self._tables(), key=lambda name: name.count("/")):
            folder = table.rpartition("/")[0]
            for row in _read_table(Path(self.path) / table):
                name = row.get("file_name") if isinstance(row, dict) else None
                if not isinstance(name, str):
                    raise DataError(f"{Path(self.path) / table} has a row without file_name: {str(row)[:200]}")
                found[os.path.normpath(f"{folder}/{name}" if folder else name)] = row
        return found


def _read_table(path: Path) -> Iterator[dict[str, Any]]:
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(path).to_pylist()
        elif path.suffix == ".csv":
            csv.field_size_limit(sys.maxsize)
            with open(path, encoding="utf-8-sig", newline="") as file:
                for row in (rows := csv.DictReader(file)):
                    if None in row:
                        raise ValueError(f"line {rows.line_num} has more fields than the first; put commas in quotes")
                    yield row
        else:
            with open(path, encoding="utf-8-sig") as file:
                yield from (json.loads(line) for line in file if line.strip())
    except (ValueError, RecursionError, csv.Error, OSError) as error:  # pyarrow's are ValueErrors
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error

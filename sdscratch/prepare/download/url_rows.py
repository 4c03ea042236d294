"""Rows of metadata with the URLs of pictures, in the sequence of their files, as a downloader takes them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from glob import escape
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np

from sdscratch.data.captions import clean
from sdscratch.data.shards import KEY, KEY_IN_WORDS
from sdscratch.errors import DataError
from sdscratch.files import fingerprint_of
from sdscratch.prepare.sql import identifier, quoted

READERS = {
    ".parquet": "read_parquet({files}, union_by_name=true)",
    ".csv": "read_csv({files}, union_by_name=true, sample_size=-1)",
    ".tsv": "read_csv({files}, union_by_name=true, sample_size=-1, delim='\t')",
    ".jsonl": "read_json({files}, union_by_name=true, format='newline_delimited')",
}
_OF_THE_PICTURE = {"key", "url", "caption", "captions", "width", "height"}  # what a sample says itself
_FITS = f"regexp_full_match(key, '{KEY.pattern}')"  # NULL, of a row without URL, is not odd
_BATCH = 2048


class Row(NamedTuple):
    """One picture to get. number: of the row, from 0. about: what else is known, as plain JSON. is_first: of its key."""

    number: int
    key: str
    url: str
    caption: str
    about: dict[str, Any]
    is_first: bool


class UrlRows:
    """The rows of a file (parquet, csv, tsv, jsonl), or of all such files of a folder in the sequence of their names.

    Columns: `url` and `caption`, others travel along; `key` where it is missing is the first 20 hexadecimal digits of
    the URL's sha256. Nothing of the size of the data is held but 9 bytes a row. Raises DataError.
    """

    def __init__(self, path: Path) -> None:
        self.path, files = path, _files(path)
        self.fingerprint = fingerprint_of(*files)
        listed = ", ".join(quoted(escape(str(file))) for file in files)
        reader = READERS[files[0].suffix.lower()].format(files=f"[{listed}]")
        try:
            self._database = duckdb.connect()
            described = self._database.execute(f"DESCRIBE SELECT * FROM {reader}").fetchall()
            columns = {str(name).lower(): str(name) for name, *_ in described}
            for needed in ("url", "caption"):
                if needed not in columns:
                    found = ", ".join(columns.values())
                    raise DataError(f"{path} has no column {needed} (it has {found}): `sdscratch data filter` gives it")
            known = f"CAST({identifier(columns['key'])} AS VARCHAR)" if "key" in columns else "NULL"
            key = f"coalesce({known}, left(sha256(CAST({identifier(columns['url'])} AS VARCHAR)), 20))"
            self._query = f"SELECT * REPLACE ({key} AS key)" if "key" in columns else f"SELECT *, {key} AS key"
            self._query += f" FROM {reader}"
            if odd := self._database.execute(f"SELECT key FROM ({self._query}) WHERE NOT {_FITS} LIMIT 1").fetchone():
                raise DataError(f"{path} has the key {odd[0]!r}: expected {KEY_IN_WORDS}")
            hashes = self._database.execute(f"SELECT hash(key) AS h FROM ({self._query})").fetchnumpy()["h"]
        except duckdb.Error as error:
            raise DataError(f"{path} cannot be read: {' '.join(str(error).split())[:300]}") from error
        self._is_first = np.zeros(len(hashes), dtype=bool)
        self._is_first[np.unique(np.asarray(hashes), return_index=True)[1]] = True

    def __len__(self) -> int:
        return len(self._is_first)

    def read(self, start: int = 0) -> Iterator[Row]:
        """All rows from number `start` on."""
        reader = self._database.sql(f"{self._query} OFFSET {start}").to_arrow_reader(_BATCH)
        for batch in reader:
            for fields in batch.to_pylist():
                yield self._row(start, {str(name).lower(): value for name, value in fields.items()})
                start += 1

    def slices(self, size: int, first: int = 0) -> Iterator[list[Row]]:
        """Slice after slice of `size` rows, from number `first` on."""
        remaining = self.read(start=first * size)
        while part := list(islice(remaining, size)):
            yield part

    def _row(self, number: int, fields: dict[str, Any]) -> Row:
        about = {name: value for name, value in fields.items() if name not in _OF_THE_PICTURE and _is_plain(value)}
        texts = {name: "" if fields[name] is None else str(fields[name]) for name in ("key", "url", "caption")}
        is_first = bool(self._is_first[number])
        return Row(number, texts["key"], texts["url"], clean(texts["caption"]), about, is_first)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        files = [path] if path.is_file() else []
    else:
        there = sorted(filter(Path.is_file, path.iterdir()))
        by_kind = [[file for file in there if file.suffix.lower() == kind] for kind in READERS]
        files = next(filter(None, by_kind), [])
    if not files or files[0].suffix.lower() not in READERS:
        raise DataError(f"no rows in {path}: expected a file, or a folder of files, of {', '.join(READERS)}")
    return files


def _is_plain(value: object) -> bool:
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))

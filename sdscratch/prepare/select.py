"""A part of a folder of shards by a condition in SQL on its samples' records. Copies nothing."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.index import ShardIndex
from sdscratch.data.selection import Selection
from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.files import FolderLock, remove_halves
from sdscratch.prepare.condition import changing
from sdscratch.prepare.sql import quoted

BATCH = 20_000  # samples read at once
DEEPEST = 16  # levels of a record that are looked at
_ROW = "_row"  # the number of a sample
_STRUCTURE = """
    SELECT json_group_structure(example)
    FROM (SELECT any_value(record) AS example FROM records GROUP BY json_structure(record))
"""  # of all records, from one of each form: the aggregate holds in memory whatever it is given


def select(
    path: Path,
    out: Path,
    where: str,
    cache: Path | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Selection:
    """Write to `out` which samples of the shards in `path` fit `where`; path may be a selection itself.

    where: a condition as after SQL's WHERE (DuckDB's dialect), on the fields of the samples' KEY.json, `captions` as a
        list whatever it was, `key` and `shard`. It reaches no files, settings or extensions, and neither chance nor the clock.
    What `out` holds already, from the same samples by the same condition, is left alone.
    Raises ConfigError for a condition that cannot be understood, DataError where no sample fits it, or `out` holds
    something else.
    """
    if not where.strip():
        raise ConfigError("where is empty: expected a condition, as after SQL's WHERE; `true` fits all samples")
    target = _Target(path, out, where, cache)
    if (present := target.present()) is not None:
        return present
    numbers = _fitting(target.index, where, progress)
    if not len(numbers):
        raise DataError(f"none of the {len(target.index)} samples in {path} fits where={where!r}. Nothing was written.")
    return target.write(numbers)


def keep(path: Path, out: Path, where: str, numbers: np.ndarray, cache: Path | None = None) -> Selection:
    """Write to `out` that it holds the samples `numbers` of `path`; where: why those, in words. As `select` otherwise."""
    target = _Target(path, out, where, cache)
    return target.present() or target.write(numbers)


class _Target:
    """A folder that is to hold a selection of `path`, which may be one itself."""

    def __init__(self, path: Path, out: Path, where: str, cache: Path | None) -> None:
        self.out, self.index = out, ShardIndex.open(path, cache)
        whole = ShardIndex.open(self.index.folder, cache)
        self.total = len(whole)
        source = os.path.relpath(self.index.folder.resolve(), out.resolve())
        where = where if self.index.rows is None else f"({_condition_of(path)}) AND ({where})"
        self.origin = (source, whole.fingerprint, where)

    def present(self) -> Selection | None:
        """This very selection, where it is there already. Raises DataError where anything else is."""
        out, present = self.out, Selection.read(self.out)
        if present is not None:
            if (present.source, present.source_fingerprint, present.where) == self.origin:
                return present
            raise DataError(
                f"{out} holds another selection (where {present.where}). Delete it, or write to another folder."
            )
        if out.exists() and (not out.is_dir() or any(out.glob("*.tar")) or any(out.glob("*.json"))):
            raise DataError(f"{out} holds something else. Write the selection to a folder of its own.")
        return None

    def write(self, numbers: np.ndarray) -> Selection:
        """numbers: of samples of the index, rising."""
        rows = numbers if self.index.rows is None else self.index.rows[numbers]
        selection = Selection(*self.origin, self.total, rows.astype(np.int64))
        with FolderLock(self.out, "choose another out=").held(wait=True):
            if (present := self.present()) is not None:  # of another process, since this one has looked first
                return present
            remove_halves(self.out)
            selection.write(self.out)
        return selection


def _condition_of(path: Path) -> str:
    selection = Selection.read(path)
    return selection.where if selection is not None else "true"


def _fitting(index: ShardIndex, where: str, progress: Callable[[int, int], None]) -> np.ndarray:
    """The numbers of the samples that fit, rising. Their records wait in a data base on disk, not in memory."""
    with ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="sdscratch-select-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        connection = stack.enter_context(duckdb.connect(str(Path(folder) / "records.duckdb")))
        connection.execute(f"CREATE TABLE records ({_ROW} BIGINT, record JSON)")
        connection.execute("SET preserve_insertion_order=false")
        connection.execute("SET autoload_known_extensions=false")
        connection.execute("SET autoinstall_known_extensions=false")
        connection.execute("SET enable_external_access=false")
        connection.execute("SET lock_configuration=true")
        try:
            for first in range(0, len(index), BATCH):
                numbers = range(first, min(first + BATCH, len(index)))
                records = [_record(index, n) for n in numbers]
                connection.register("batch", pa.table({_ROW: list(numbers), "record": records}))
                connection.execute("INSERT INTO records SELECT * FROM batch")
                connection.unregister("batch")
                progress(numbers.stop, len(index))
            structure = connection.execute(_STRUCTURE).fetchone()
            form = quoted(str(structure[0] if structure else "{}"))
            connection.execute(
                f"CREATE VIEW samples AS SELECT {_ROW}, unnest(json_transform(record, {form})) FROM records"
            )
        except duckdb.IOException as error:
            raise CannotWriteError(f"cannot keep the records of {index.folder} in {folder}: {error}") from error
        samples = connection.table("samples")
        try:
            if (found := changing(connection, where, samples.columns)) is not None:
                raise ConfigError(
                    f"where={where!r}: {found} chooses otherwise each time. For a share that stays the same, compare "
                    "md5(key), as in md5(key) < '4', a quarter"
                )
            fitting = samples.filter(where).project(_ROW).fetchnumpy()[_ROW]
        except duckdb.Error as error:
            columns = ", ".join(name for name in samples.columns if name != _ROW)
            raise ConfigError(
                f"where={where!r}: {_first_line(error)}. The samples have the fields {columns}."
            ) from error
    return np.sort(np.ma.getdata(fitting))


def _record(index: ShardIndex, n: int) -> str:
    """What is known of a sample, as JSON; our own fields first, so that a record's of the same name do not count."""
    members = index.read(n, only=("json", "txt"))
    record = record_of(members)
    known = {"key": index.key(n), "shard": index.shard(n), "captions": captions_of(members, record)}
    return json.dumps(_plain(known | {name: value for name, value in record.items() if name not in known}))


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON that is a row of SQL's too: no infinite numbers, no half characters, no names that differ in case alone."""
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if not isinstance(value, (list, dict)):
        return value
    if depth == DEEPEST:
        return None
    if isinstance(value, list):
        return [_plain(item, depth + 1) for item in value]
    fields, taken = dict[str, Any](), {"", _ROW}
    for name, item in value.items():
        name = _plain(name)
        if name.lower() not in taken:
            taken.add(name.lower())
            fields[name] = _plain(item, depth + 1)
    return fields


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(". ")

"""DuckDB within its memory, its errors as ours, and rows written to parquet, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.files import write_atomically

GROUP = 100_000  # rows of a parquet row group, and of a batch


@contextmanager
def connection(spill: Path, memory: str, share: int = 1) -> Iterator[duckdb.DuckDBPyConnection]:
    """A data base in memory. spill: where what is beyond `memory` goes. share: how many such use this machine's cores."""
    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory,
        "temp_directory": str(spill / "spilled"),
        "threads": max(1, (os.cpu_count() or 1) // share),
        "preserve_insertion_order": False,  # whoever needs a sequence asks for it
    }
    with duckdb.connect(config=settings) as opened:
        opened.execute("SET enable_progress_bar = false")  # it would write to stdout
        yield opened


@contextmanager
def reading(what: Path) -> Iterator[None]:
    """Errors of DuckDB, and those that it hands on through Arrow: DataError that names `what` was read, or what else it is."""
    try:
        yield
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        said = " ".join(str(error).split())
        if "No space left on device" in said or "max_temp_directory_size" in said:
            raise CannotWriteError(f"no space left to sort and compare what is in {what}: free some") from error
        if "Out of Memory" in said:
            raise ConfigError(f"memory= is too little for {what}: set it to more") from error
        raise DataError(f"{what} cannot be read: {_shortened(said)}") from error


def batches(rows: pa.RecordBatchReader, what: Path) -> Iterator[pa.RecordBatch]:
    """Rows as they come. Raises as `reading` does."""
    with reading(what):
        yield from rows


def write_rows(path: Path, schema: pa.Schema, rows: Iterable[pa.RecordBatch], compression: str = "zstd") -> int:
    """Write a parquet file; how many rows it has. Its bytes depend on their sequence, not on how they come in batches."""
    count = 0

    def fill(file: IO[bytes]) -> None:
        nonlocal count
        with pq.ParquetWriter(file, schema, compression=compression) as writer:
            for table in _in_groups(rows, schema):
                writer.write_table(table, row_group_size=GROUP)
                count += len(table)

    write_atomically(path, fill)
    return count


def _in_groups(rows: Iterable[pa.RecordBatch], schema: pa.Schema) -> Iterator[pa.Table]:
    waiting = pa.Table.from_batches([], schema)
    for batch in rows:
        waiting = pa.concat_tables([waiting, pa.Table.from_batches([batch], schema)])
        while len(waiting) >= GROUP:
            yield waiting.slice(0, GROUP).combine_chunks()
            waiting = waiting.slice(GROUP)
    if len(waiting):
        yield waiting.combine_chunks()


def _shortened(said: str) -> str:
    return said if len(said) <= 300 else said[:300] + " ..."

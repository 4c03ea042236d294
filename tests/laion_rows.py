"""Metadata for tests: rows as LAION has them, and what filtering leaves in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb


def write(path: Path, rows: list[dict[str, Any]] | str) -> Path:
    """Rows, or SQL that makes them, as a parquet or csv file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(rows, list):
        path.with_suffix(".json").write_text(json.dumps(rows))
        rows = f"FROM read_json('{path.with_suffix('.json')}')"
    duckdb.sql(f"COPY ({rows}) TO '{path}' (FORMAT {path.suffix[1:]})")
    path.with_suffix(".json").unlink(missing_ok=True)
    return path


def synthetic(first: int, last: int) -> str:
    """LAION-like rows, as SQL: a twentieth of the addresses and a few captions come again, also in other files."""
    return f"""
        SELECT 'https://cdn-' || hash(j) % 500 || '.org/' || md5(j::VARCHAR) AS URL,
            ['red', 'old', 'nude', 'blue'][1 + ((h >> 3) % 4)::INT] || ' picture number ' || h % 100000000 AS TEXT,
            (200 + h % 1400)::INT AS WIDTH, (200 + (h >> 13) % 1400)::INT AS HEIGHT,
            0.2 + ((h >> 20) % 1000) / 5000 AS similarity,
            ((h >> 9) % 1000) / 1000 AS punsafe, ((h >> 17) % 1000) / 1000 AS pwatermark,
            4.5 + ((h >> 27) % 1000) / 250 AS AESTHETIC_SCORE, h % 100 AS hash
        FROM (SELECT h, i - if(h % 20 = 0, (h % 1000)::BIGINT, 0) AS j
            FROM (SELECT i, hash(i) AS h FROM range({first}, {last}) t(i)))"""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}

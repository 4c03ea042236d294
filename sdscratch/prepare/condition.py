"""What in a condition in SQL would choose otherwise tomorrow: chance, the clock, a sample."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

import duckdb

_CHANGING = """
    SELECT function_name FROM duckdb_functions()
    WHERE stability = 'VOLATILE' OR (stability = 'CONSISTENT_WITHIN_QUERY' AND len(parameters) = 0)
"""  # the latter: the clock. With parameters there are such as ask for the time zone, and only of some types
_OF_NOW = {"age", "ago"}  # count from today
_WORDS = {"current_time", "current_timestamp", "localtime", "localtimestamp"}  # stand like columns


def changing(connection: duckdb.DuckDBPyConnection, where: str, columns: Collection[str]) -> str | None:
    """The first thing in a condition that does not depend on the samples alone; None where there is none.

    columns: that there are, and so are no words of SQL. A condition that cannot be parsed says so to whoever uses it.
    """
    query = f"SELECT 1 WHERE {where}\n"
    (tree,) = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [query]).fetchall()[0]
    functions = {name for (name,) in connection.execute(_CHANGING).fetchall()} | _OF_NOW
    words = (functions | _WORDS) - {column.lower() for column in columns}
    for kind, name in _named(json.loads(tree)):
        if kind == "sample" or name.lower() in (functions if kind == "function" else words):
            return "a sample" if kind == "sample" else f"{name}()"
    return None


def _named(node: Any) -> Iterator[tuple[str, str]]:
    """("function" | "column" | "sample", its name) of whatever is in a syntax tree."""
    if isinstance(node, list):
        for item in node:
            yield from _named(item)
    elif isinstance(node, dict):
        if node.get("function_name"):
            yield "function", node["function_name"]
        if len(names := node.get("column_names") or []) == 1:
            yield "column", names[0]
        if node.get("sample"):
            yield "sample", ""
        yield from _named(list(node.values()))

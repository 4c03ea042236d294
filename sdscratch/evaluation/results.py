"""What an evaluation has found: tables, each with the protocol that its numbers hold under, and grids of pictures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sdscratch.errors import DataError
from sdscratch.evaluation.bootstrap import Estimate
from sdscratch.files import read_json, write_json

RESULTS = "results.json"
ALL = "all"  # the group of rows over everything


@dataclass(frozen=True)
class Row:
    """A measure of a group (a category, a source, a bin of timesteps) with the interval around it."""

    measure: str
    group: str
    value: float
    low: float | None
    high: float | None
    count: int

    @classmethod
    def of(cls, measure: str, found: Estimate, group: str = ALL) -> Row:
        return cls(measure, group, *found)


@dataclass(frozen=True)
class Table:
    """protocol: what the numbers depend on, plain JSON. note: how to read them."""

    title: str
    protocol: dict[str, Any]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """grids: {title: file below the evaluation's folder}."""

    title: str
    tables: list[Table]
    grids: dict[str, str] = field(default_factory=dict)

    def write(self, folder: Path) -> None:
        write_json(folder / RESULTS, {"format": 1, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Evaluation:
        """Raises DataError where there is none, or it is damaged."""
        found = read_json(folder / RESULTS)
        try:
            tables = [Table(**{**table, "rows": [Row(**row) for row in table["rows"]]}) for table in found["tables"]]
            return cls(str(found["title"]), tables, dict(found["grids"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder} holds no evaluation: expected a folder with {RESULTS}, as `sdscratch evaluate out={folder}` writes"
            ) from error

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

    def is_sound(self) -> bool:
        """Whether names are texts, and numbers numbers; an interval has both ends or none."""
        numbers = [self.value] if self.low is self.high is None else [self.value, self.low, self.high]
        return isinstance(self.measure, str) and isinstance(self.group, str) and all(map(_is_number, numbers))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
            evaluation = cls(str(found["title"]), tables, dict(found["grids"]))
            evaluation._check()
            return evaluation
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{folder} holds no evaluation: expected a folder with {RESULTS}, as `sdscratch evaluate out={folder}` writes"
            ) from error

    def _check(self) -> None:
        """Raise ValueError for what `write` does not write: a page about it shows files of the evaluation's folder only."""
        for table in self.tables:
            if not (isinstance(table.title, str) and isinstance(table.protocol, dict) and isinstance(table.note, str)):
                raise ValueError(f"{table.title!r} is no table")
            if not all(row.is_sound() for row in table.rows):
                raise ValueError(f"{table.title} holds what is no row")
        for file in self.grids.values():
            if not isinstance(file, str) or Path(file).is_absolute() or ".." in Path(file).parts:
                raise ValueError(f"{file!r} is no file of this folder")

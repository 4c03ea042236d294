"""The numbers of a run, for whoever looks at them again and again: only what is new is read, and thinned as it comes."""

from __future__ import annotations

import csv
import math
import os
import threading
from array import array
from functools import lru_cache
from pathlib import Path

from sdscratch.errors import RunFolderError
from sdscratch.files import check_file
from sdscratch.run_folder import LONGEST_LINE, as_number, as_row

MOST = 10_000  # points that are kept of a column
RUNS = 16  # whose numbers are kept
Point = tuple[int, float | None]


class Column:
    """One quantity over the steps, in at most MOST points: means of as many neighbours each as that takes."""

    def __init__(self) -> None:
        self.steps, self.means = array("q"), array("d")
        self.width = 1  # values in a point
        self.last, self.total, self.count = 0, 0.0, 0  # of the point that is not whole yet

    def add(self, step: int, value: float) -> None:
        """The next of its values."""
        self.last, self.total, self.count = step, self.total + value, self.count + 1
        if self.count == self.width:
            self.steps.append(step)
            self.means.append(self.total / self.width)
            self.total, self.count = 0.0, 0
            if len(self.steps) == MOST:
                self._halve()

    def points(self) -> list[Point]:
        """In the order of the steps."""
        rest = [(self.last, self.total / self.count)] if self.count else []
        return [*zip(self.steps, self.means, strict=True), *rest]

    def _halve(self) -> None:
        self.width *= 2
        self.steps = self.steps[1::2]
        self.means = array("d", [a / 2 + b / 2 for a, b in zip(self.means[::2], self.means[1::2], strict=True)])


class Metrics:
    """metrics.csv as far as it is written. One that is not the file any more that it was is read anew."""

    def __init__(self, file: Path) -> None:
        self.file, self._turn = file, threading.Lock()
        self._forget()

    def series(self, points: int) -> dict[str, list[Point]]:
        """By column, at most `points` of each; None: not finite. Raises RunFolderError where it cannot be read."""
        with self._turn:
            try:
                self._read_on()
            except FileNotFoundError:
                self._forget()
            except OSError as error:
                raise RunFolderError(f"cannot read {self.file}: {error.strerror or error}") from error
            return {name: thinned(column.points(), points) for name, column in self._columns.items()}

    def _forget(self) -> None:
        self._inode, self._read, self._last_line = -1, 0, b""
        self._in_long_line = False  # of which _last_line is a part
        self._names: list[str] | None = None  # until the header is read
        self._columns: dict[str, Column] = {}

    def _read_on(self) -> None:
        """A line without its end, or with a NUL in it, is torn, or being written just now: it does not count yet.

        The rest of one that is too long is passed over, whether it has an end or not.
        """
        check_file(self.file)
        with self.file.open("rb") as file:
            inode = os.fstat(file.fileno()).st_ino
            file.seek(self._read - len(self._last_line))
            if inode != self._inode or file.read(len(self._last_line)) != self._last_line:
                self._forget()
                self._inode = inode
                file.seek(0)
            while line := file.readline(LONGEST_LINE + 1):
                whole = line.endswith(b"\n")
                if b"\0" in line or not whole and len(line) <= LONGEST_LINE:
                    break
                if not self._in_long_line:
                    for part in line.decode(errors="replace").splitlines():  # where RunFolder ends lines, too
                        self._take(part)
                self._read, self._last_line, self._in_long_line = self._read + len(line), line, not whole

    def _take(self, line: str) -> None:
        if self._names is None:
            self._names = next(csv.reader([line[:LONGEST_LINE]]), [])
        elif row := as_row(self._names, line):
            step = int(row.pop("step"))
            for name, text in row.items():
                if (value := as_number(text)) is not None:
                    self._columns.setdefault(name, Column()).add(step, value)


metrics_of = lru_cache(RUNS)(Metrics)
"""Of the same file the same object, so that it goes on from where it was."""


def thinned(series: list[Point], points: int) -> list[Point]:
    """At most `points` of them: means of neighbours, at the last one's step; None where one of them is not finite."""
    width = math.ceil(len(series) / points)
    groups = [series[first : first + width] for first in range(0, len(series), width)] if series else []
    return [(group[-1][0], _mean([value for _, value in group])) for group in groups]


def _mean(values: list[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return math.fsum(finite) / len(finite) if len(finite) == len(values) else None

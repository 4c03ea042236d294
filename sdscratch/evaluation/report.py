"""The page about an evaluation, or about several side by side: one file, with its pictures in it."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sdscratch.errors import DataError
from sdscratch.evaluation.results import ALL, Evaluation, Row, Table
from sdscratch.files import write_atomically
from sdscratch.pages import render_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.html"
OWN = ("model", "network", "weights", "step", "N", "batch_size")
"""What may differ between evaluations that compare, if N is large."""


class Section(NamedTuple):
    """Tables of one title. protocols: {name: a value for each evaluation}. lines: (measure, group, a row or None for each).

    differing: names in the protocols that keep the numbers from comparing. charts: data URIs.
    """

    title: str
    note: str
    protocols: Mapping[str, Sequence[Any]]
    differing: Sequence[str]
    lines: Sequence[tuple[str, str, Sequence[Row | None]]]
    charts: Sequence[str]


def write_report(page: Path, title: str, evaluations: Mapping[Path, Evaluation]) -> Path:
    """Write the page about evaluations, {folder: what it holds}, in their order. Returns `page`.

    Raises DataError where a grid that an evaluation names is gone.
    """
    names = column_names(list(evaluations))
    every = list(evaluations.values())
    titles = dict.fromkeys(table.title for evaluation in every for table in evaluation.tables)
    grids = dict.fromkeys(grid for evaluation in every for grid in evaluation.grids)
    text = render_page(
        "evaluation/report.html",
        title=title,
        names=names,
        sections=[section(found, names, every) for found in titles],
        grids={grid: [_grid(folder, of, grid) for folder, of in evaluations.items()] for grid in grids},
    )
    write_atomically(page, lambda file: file.write(text))
    return page


def column_names(folders: Sequence[Path]) -> list[str]:
    """The folders' last parts, or the whole paths where those are not distinct."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def section(title: str, names: Sequence[str], evaluations: Sequence[Evaluation]) -> Section:
    """The tables of that title, one for each evaluation that has it, side by side."""
    tables = [_table(evaluation, title) for evaluation in evaluations]
    keys = dict.fromkeys(key for table in tables if table for key in table.protocol)
    protocols = {key: [table.protocol.get(key, "") if table else "" for table in tables] for key in keys}
    present = [table.protocol for table in tables if table]
    differing = [key for key in keys if key not in OWN and len({repr(p.get(key)) for p in present}) > 1]
    rows = [{(row.measure, row.group): row for row in table.rows} if table else {} for table in tables]
    lines = [
        (*key, [found.get(key) for found in rows]) for key in dict.fromkeys(key for found in rows for key in found)
    ]
    note = next(table.note for table in tables if table)
    return Section(title, note, protocols, differing, lines, _charts(lines, names))


def draw_groups(measure: str, lines: Sequence[tuple[str, Sequence[Row | None]]], names: Sequence[str]) -> Figure:
    """A bar for each group and evaluation, with its interval."""
    from matplotlib.figure import Figure

    height = 0.8 / len(names)
    figure = Figure(figsize=(8, 1 + (0.2 + 0.2 * len(names)) * len(lines)), layout="constrained")
    panel = figure.subplots()
    for number, name in enumerate(names):
        found = [(place, rows[number]) for place, (_, rows) in enumerate(lines)]
        bars = [(place + (number - (len(names) - 1) / 2) * height, row) for place, row in found if row is not None]
        reach = [
            [row.value - _or(row.low, row.value) for _, row in bars],
            [_or(row.high, row.value) - row.value for _, row in bars],
        ]
        panel.barh(
            [place for place, _ in bars],
            [row.value for _, row in bars],
            height,
            xerr=[[max(0.0, length) for length in side] for side in reach],
            label=name,
            error_kw={"elinewidth": 1},
        )
    panel.set_yticks(range(len(lines)), [group for group, _ in lines], fontsize=8)
    panel.invert_yaxis()
    panel.set_xlabel(measure)
    panel.grid(axis="x", alpha=0.3)
    if len(names) > 1:
        panel.legend(fontsize=8)
    return figure


def _charts(lines: Sequence[tuple[str, str, Sequence[Row | None]]], names: Sequence[str]) -> list[str]:
    """One for each measure of several groups."""
    groups: dict[str, list[tuple[str, Sequence[Row | None]]]] = {}
    for measure, group, rows in lines:
        if group != ALL:
            groups.setdefault(measure, []).append((group, rows))
    return [_uri(_png(draw_groups(measure, found, names))) for measure, found in groups.items() if len(found) > 1]


def _table(evaluation: Evaluation, title: str) -> Table | None:
    return next((table for table in evaluation.tables if table.title == title), None)


def _grid(folder: Path, evaluation: Evaluation, title: str) -> str | None:
    if title not in evaluation.grids:
        return None
    try:
        return _uri((folder / evaluation.grids[title]).read_bytes())
    except OSError as error:
        raise DataError(
            f"{folder / evaluation.grids[title]} cannot be read ({error.strerror}). Evaluate again into {folder}"
        ) from error


def _png(figure: Figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=100)
    return file.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"


def _or(bound: float | None, value: float) -> float:
    return value if bound is None else bound

"""What the runs of a sweep have reached, read from their folders, and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sdscratch.errors import RunFolderError
from sdscratch.files import read_json, write_atomically
from sdscratch.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Result:
    """One run of a sweep. swept: its values of what the jobs differ in. value: its objective, None before it is finished.

    train_loss: the last interval mean of the weighted loss, for comparison with the objective, not with other runs.
    """

    run: RunFolder
    swept: dict[str, Any]
    status: str
    metric: str
    value: float | None
    step: int | None
    train_loss: float | None

    @property
    def row(self) -> dict[str, Any]:
        """As a line of a table."""
        measured = {self.metric: self.value, "train/loss": self.train_loss, "step": self.step}
        return {**self.swept, **measured, "status": self.status, "run": str(self.run.path)}


def results_of(sweep: Path) -> list[Result]:
    """All runs of the sweep in a folder such as runs/NAME, the best first, those without a value last.

    Raises RunFolderError where there is none.
    """
    runs = [RunFolder(file.parent) for file in sorted(sweep.glob("*/sweep.json"))]
    if not runs:
        raise RunFolderError(
            f"{sweep} holds no sweep: expected a folder such as runs/NAME, made by `sdscratch train -m`"
        )
    metric = next((about["metric"] for run in runs if "metric" in (about := run.objective())), "val/loss")
    return sorted(
        (_result(run, metric) for run in runs),
        key=lambda result: (result.value is None, result.value or 0.0, result.run.path),
    )


def _result(run: RunFolder, metric: str) -> Result:
    state, status = run.state(), run.status() or "not started"
    objective = run.objective() if status == "done" else {}
    value = objective.get("value")
    compares = objective.get("metric") == metric and isinstance(value, int | float) and math.isfinite(value)
    losses = [row["train/loss"] for row in run.read_metrics() if "train/loss" in row]
    return Result(
        run=run,
        swept=read_json(run.path / "sweep.json"),
        status=status,
        metric=metric,
        value=value if compares else None,
        step=objective.get("step", state.get("step")),
        train_loss=losses[-1] if losses else None,
    )


def draw(results: Sequence[Result], file: Path) -> None:
    """A PNG of the objective: a curve over one swept setting, a heat map over two; of more, the best over the others.

    Settings that a search has drawn fill no grid: they are dots in their plane, coloured by the objective.
    """
    from matplotlib.figure import Figure

    measured = [result for result in results if result.value is not None and math.isfinite(result.value)]
    keys = list(dict.fromkeys(key for result in measured for key in result.swept))
    keys.sort(key=lambda key: -len(_levels(measured, key)))
    if not keys:
        why = "its jobs differ in nothing but their names" if measured else "no run of it is finished"
        raise RunFolderError(f"there is nothing to draw of this sweep: {why}")
    across, up = (keys[0], keys[1] if len(keys) > 1 else None)
    figure = Figure(figsize=(5.2, 4.0), layout="constrained")
    axes = figure.subplots()
    if up is None:
        _curve(axes, measured, across)
    elif len(_levels(measured, across)) * len(_levels(measured, up)) <= 2 * len(measured):
        figure.set_figwidth(min(14, max(4.8, len(_levels(measured, across)) + 2.6)))
        _heat_map(figure, axes, measured, across, up)
    else:
        _dots(figure, axes, measured, across, up)
    others = [key for key in keys[2:] if len(_levels(measured, key)) > 1]
    best = f", best over {', '.join(others)}" if others else ""
    axes.set_title(f"{measured[0].metric} (EMA, lower is better){best}", fontsize=10)
    write_atomically(file, lambda out: figure.savefig(out, format="png", dpi=120))


def _curve(axes: Axes, results: Sequence[Result], key: str) -> None:
    levels = _levels(results, key)
    axes.plot(range(len(levels)), [_best(results, {key: level}) for level in levels], marker="o")
    axes.set_xticks(range(len(levels)), [_label(level) for level in levels])
    axes.set_xlabel(key)
    axes.grid(alpha=0.3)


def _heat_map(figure: Any, axes: Axes, results: Sequence[Result], across: str, up: str) -> None:
    """Each cell with its number; those without a finished run are left white."""
    columns, rows = _levels(results, across), _levels(results, up)
    cells = [[_best(results, {across: column, up: row}) for column in columns] for row in rows]
    image = axes.imshow(cells, cmap="viridis_r", aspect="auto", origin="lower")
    figure.colorbar(image, ax=axes)
    axes.set_xticks(range(len(columns)), [_label(level) for level in columns])
    axes.set_yticks(range(len(rows)), [_label(level) for level in rows])
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    known = [value for line in cells for value in line if not math.isnan(value)]
    middle, digits = (min(known) + max(known)) / 2, _digits(known)
    for y, line in enumerate(cells):
        for x, value in enumerate(line):
            if not math.isnan(value):
                mark = "\n(best)" if value == min(known) else ""
                colour = "white" if value > middle else "black"
                axes.text(x, y, f"{value:.{digits}f}{mark}", ha="center", va="center", fontsize=9, color=colour)


def _dots(figure: Any, axes: Axes, results: Sequence[Result], across: str, up: str) -> None:
    drawn = [result for result in results if across in result.swept and up in result.swept]
    places: list[list[Any]] = []
    for key, set_ticks, set_scale in (
        (across, axes.set_xticks, axes.set_xscale),
        (up, axes.set_yticks, axes.set_yscale),
    ):
        levels = _levels(drawn, key)
        if all(isinstance(level, int | float) and not isinstance(level, bool) for level in levels):
            places.append([result.swept[key] for result in drawn])
            if levels[0] > 0 and levels[-1] > 20 * levels[0]:
                set_scale("log")
        else:
            places.append([levels.index(result.swept[key]) for result in drawn])
            set_ticks(range(len(levels)), [_label(level) for level in levels])
    x, y = places
    values = np.array([result.value for result in drawn], dtype=float)
    dots = axes.scatter(x, y, c=values, cmap="viridis_r", s=60, edgecolors="black")
    axes.scatter(x[:1], y[:1], s=220, facecolors="none", edgecolors="red")  # results come best first
    figure.colorbar(dots, ax=axes)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)


def _levels(results: Sequence[Result], key: str) -> list[Any]:
    """The values of a setting, each once: numbers in their order, before all else in the order of the text."""
    values = {
        repr(value): value for result in results if (value := result.swept.get(key, _ABSENT)) is not _ABSENT
    }.values()
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return [*sorted(numbers), *sorted((value for value in values if value not in numbers), key=str)]


_ABSENT = object()


def _best(results: Sequence[Result], swept: dict[str, Any]) -> float:
    """The lowest objective of the runs with these values; nan where there is none."""
    having = [r for r in results if all(repr(r.swept.get(key)) == repr(value) for key, value in swept.items())]
    return min((float(r.value) for r in having if r.value is not None), default=math.nan)


def _label(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _digits(values: Sequence[float]) -> int:
    """Decimals that tell values apart, from 3 to 6."""
    spread = max(values) - min(values)
    return min(6, max(3, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3

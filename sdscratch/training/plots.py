"""Curves of a run as PNGs, drawn from metrics.csv alone."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import lightning as L

from sdscratch.files import write_atomically
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAMILIES = {
    r"(val/loss)_(t\d+_\d+)": "{} by timestep",
    r"(val/[^/]+)/(.+)": "{} by source",
}
"""Columns that share a panel: the first group names it, the second one the curve."""


class Plots(StepCallback):
    """Every `every` steps and at the end: `plots/`, one PNG per group of curves."""

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if trainer.is_global_zero and self.is_due(trainer, step):
            with module.aside(), said_not_raised("plots are out of date"):
                draw_curves(RunFolder(trainer.default_root_dir))


def draw_curves(run: RunFolder) -> None:
    """train.png and val.png with a panel per measure, and rates.png with what the optimizer and the machine did.

    In val.png losses by timestep share a panel, and so do those by source of data.
    """
    from matplotlib.figure import Figure

    rows = run.read_metrics()
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "samples_seen")))
    groups = {
        "train": [name for name in names if name.startswith("train/")],
        "val": [name for name in names if name.startswith("val/")],
        "rates": [name for name in names if "/" not in name],
    }
    for group, members in groups.items():
        panels = _panels(members)
        if not panels:
            continue
        columns, lines = min(3, len(panels)), -(-len(panels) // 3)
        figure = Figure(figsize=(3.6 * columns, 2.6 * lines), layout="constrained")
        axes = figure.subplots(lines, columns, squeeze=False)
        for place, (title, curves) in zip(axes.flat, panels.items(), strict=False):
            _draw(place, title, curves, rows)
        for place in axes.flat[len(panels) :]:
            place.axis("off")
        figure.supxlabel("optimizer steps", fontsize=8)
        write_atomically(run.plots / f"{group}.png", partial(figure.savefig, format="png", dpi=110))


def _panels(names: Sequence[str]) -> dict[str, dict[str, str]]:
    """Title of each panel -> label of each curve in it -> its column."""
    panels: dict[str, dict[str, str]] = {}
    for name in names:
        title, label = name, name
        for pattern, words in FAMILIES.items():
            if found := re.fullmatch(pattern, name):
                title, label = words.format(found[1]), found[2]
        panels.setdefault(title, {})[label] = name
    return panels


def _draw(axes: Axes, title: str, curves: Mapping[str, str], rows: Sequence[Mapping[str, float]]) -> None:
    for label, name in curves.items():
        points = [(row["step"], row[name]) for row in rows if name in row]
        marker = "." if len(points) < 30 else ""
        axes.plot(*zip(*points, strict=True), linewidth=1, marker=marker, label=label)
    if len(curves) > 1:
        axes.legend(fontsize=6)
    axes.set_title(title, fontsize=9)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)

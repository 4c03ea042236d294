"""Curves of a run as PNGs, drawn from metrics.csv alone."""

from __future__ import annotations

import lightning as L

from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised


class Plots(StepCallback):
    """Every `every` steps and at the end: `plots/`, one PNG per group of curves."""

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if trainer.is_global_zero and self.is_due(trainer, step):
            with module.aside(), said_not_raised("plots are out of date"):
                draw_curves(RunFolder(trainer.default_root_dir))


def draw_curves(run: RunFolder) -> None:
    """train.png and val.png with a panel per measure, and rates.png with what the optimizer and the machine did."""
    from matplotlib.figure import Figure

    rows = run.read_metrics()
    names = list(dict.fromkeys(name for row in rows for name in row if name not in ("step", "samples_seen")))
    groups = {
        "train": [name for name in names if name.startswith("train/")],
        "val": [name for name in names if name.startswith("val/")],
        "rates": [name for name in names if "/" not in name],
    }
    run.plots.mkdir(exist_ok=True)
    for group, members in groups.items():
        if not members:
            continue
        figure = Figure(figsize=(3.6 * min(3, len(members)), 2.6 * -(-len(members) // 3)), layout="constrained")
        panels = figure.subplots(-(-len(members) // 3), min(3, len(members)), squeeze=False)
        for panel, name in zip(panels.flat, members, strict=False):
            points = [(row["step"], row[name]) for row in rows if name in row]
            panel.plot(*zip(*points, strict=True), linewidth=1, marker="." if len(points) < 30 else "")
            panel.set_title(name, fontsize=9)
            panel.tick_params(labelsize=7)
            panel.grid(alpha=0.3)
        for panel in panels.flat[len(members) :]:
            panel.axis("off")
        figure.supxlabel("optimizer steps", fontsize=8)
        figure.savefig(run.plots / f"{group}.png", dpi=110)

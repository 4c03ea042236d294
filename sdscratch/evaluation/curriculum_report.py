"""The page about a curriculum: where it stands, its curves, what each phase forgot, and what each phase draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from sdscratch.files import write_atomically
from sdscratch.pages import render_page
from sdscratch.run_folder import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "train/loss_unweighted": "training loss, unweighted",
    "val/loss": "held-out loss (ema)",
    "lr": "learning rate",
}
COMPONENTS = ("val/psnr", "val/r_at_1")  # what VAE and CLIP stages are judged by


@dataclass(frozen=True)
class PhaseResult:
    """A phase that has run, or is to. about: its entry in the manifest. grid: what its averaged network draws."""

    name: str
    run: RunFolder
    about: Mapping[str, Any] = field(default_factory=dict)
    grid: Image.Image | None = None


Losses = Mapping[str, Mapping[str, float]]
"""{phase after which: {phase whose held-out set: unweighted loss of the averaged network}}, where the two compare."""


def write_report(folder: Path, title: str, phases: Sequence[PhaseResult], losses: Losses) -> Path:
    """Write report.html into `folder`, and its pictures into report/ beside it. Returns the page."""
    pictures = folder / "report"
    pictures.mkdir(parents=True, exist_ok=True)
    _save(draw_curves(phases), pictures / "curves.png")
    if losses:
        _save(draw_forgetting(losses), pictures / "forgetting.png")
    for phase in phases:
        if phase.grid is not None:
            write_atomically(pictures / f"{phase.name}.png", partial(phase.grid.save, format="PNG"))
    last = {phase.name: _last_measures(phase.run) for phase in phases}
    template = "evaluation/curriculum_report.html"
    page = render_page(template, title=title, phases=phases, losses=losses, last=last)
    write_atomically(folder / "report.html", lambda file: file.write(page))
    return folder / "report.html"


def draw_curves(phases: Sequence[PhaseResult]) -> Figure:
    """One panel per measure over the samples seen, one colour per diffusion phase."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(len(MEASURES), 1, sharex=True)
    for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for number, phase in enumerate(phases):
            rows = phase.run.read_metrics()
            points = [(row["samples_seen"], row[measure]) for row in rows if measure in row]
            if points and any("train/loss_unweighted" in row for row in rows):
                marker = "." if len(points) < 30 else ""
                panel.plot(
                    *zip(*points, strict=True), color=f"C{number}", linewidth=1.2, marker=marker, label=phase.name
                )
        panel.set_ylabel(label, fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
    panels[-1].set_yscale("log")
    panels[-1].set_xlabel("samples seen", fontsize=9)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    return figure


def draw_forgetting(losses: Losses) -> Figure:
    """A cell per phase and held-out set: the loss, coloured by how far it is above the lowest on that set."""
    import numpy as np
    from matplotlib.figure import Figure

    columns = list(dict.fromkeys(name for row in losses.values() for name in row))
    values = np.array([[row.get(name, np.nan) for name in columns] for row in losses.values()])
    above = 100 * (values / np.nanmin(values, axis=0) - 1)
    figure = Figure(figsize=(2.5 + 1.1 * len(columns), 1.6 + 0.5 * len(losses)), layout="constrained")
    panel = figure.subplots()
    image = panel.imshow(above, cmap="YlOrRd", vmin=0, vmax=max(5.0, float(np.nanmax(above))), aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        dark = above[row, column] > 0.6 * image.get_clim()[1]
        panel.text(
            column, row, f"{value:.4f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    panel.set_xticks(range(len(columns)), columns, rotation=30, ha="right", fontsize=8)
    panel.set_yticks(range(len(losses)), [f"after {name}" for name in losses], fontsize=8)
    panel.set_title("held-out loss of the averaged network", fontsize=10)
    panel.set_xlabel("on the held-out set of", fontsize=9)
    figure.colorbar(image, label="% above the lowest on that set")
    return figure


def _last_measures(run: RunFolder) -> dict[str, float]:
    """What the last validation of a run said, by name."""
    last: dict[str, float] = {}
    for row in run.read_metrics():
        last |= {name: row[name] for name in ("val/loss", *COMPONENTS) if name in row}
    return last


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110))

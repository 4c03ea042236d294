"""`sdscratch curriculum status`: where it stands, from what lies in its folders."""

from __future__ import annotations

import sys

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from sdscratch.errors import RunFolderError
from sdscratch.run_folder import RunFolder, folder_below
from sdscratch.training.curriculum import CurriculumFolder, Entry


def run(cfg: DictConfig) -> None:
    """Print a line for each phase of the manifest. Raises RunFolderError where there is none."""
    folder, entries = entries_of(cfg)
    table = Table(
        "phase", "status", "step", "samples seen", "val loss", "best", "weights from", "run", title=str(folder.path)
    )
    for entry in entries.values():
        table.add_row(*_row(entry))
    wide_console().print(table)


def entries_of(cfg: DictConfig) -> tuple[CurriculumFolder, dict[str, Entry]]:
    """The curriculum's folder and the phases of its manifest. Raises RunFolderError where there is none."""
    folder = CurriculumFolder(folder_below(cfg.paths.curricula, cfg.name))
    entries = folder.entries()
    if not entries:
        raise RunFolderError(
            f"{folder.path} holds no curriculum: `sdscratch curriculum name={cfg.name}` starts one, "
            f"`sdscratch curriculum plan name={cfg.name}` shows what it would do"
        )
    return folder, entries


def wide_console() -> Console:
    """As wide as the terminal; where there is none, as wide as a table needs."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else 200)


def _row(entry: Entry) -> list[str]:
    if entry.run is None:
        return [entry.name, entry.status]
    run = RunFolder(entry.run)
    state, known = run.state(), run.checkpoints()
    step = max(state.get("step") or 0, known[-1].step if known else 0)
    seen = entry.samples_seen or state.get("samples_seen")
    status: str = entry.status
    if status == "running" and (now := run.status()) in ("stopped", "failed"):
        status = f"running ({now})"
    if status == "done" and not run.path.is_dir():
        status = "done (its run is gone)"
    rows = [row for row in run.read_metrics() if "val/loss" in row]
    best = min(rows, key=lambda row: row["val/loss"], default=None)
    return [
        entry.name,
        status,
        f"{step} of {state.get('max_steps', '?')}",
        "-" if seen is None else f"{seen:,}",
        f"{rows[-1]['val/loss']:.4f}" if rows else "-",
        f"{best['val/loss']:.4f} at {best['step']:.0f}" if best else "-",
        str((entry.carried or {}).get("from", "-")).rpartition("/checkpoints/")[0].rpartition("/")[2] or "-",
        entry.run,
    ]

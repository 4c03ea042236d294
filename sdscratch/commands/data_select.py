"""`sdscratch data select`: some samples of a folder of shards, by a condition on their records."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sdscratch.commands.data_out import out_folder
from sdscratch.console import progress_bar
from sdscratch.prepare.select import select


def run(cfg: DictConfig) -> None:
    """Write to `out` which samples of `path` fit `where`."""
    out = out_folder(cfg)
    with progress_bar("reading records") as progress:
        selection = select(Path(cfg.path), out, str(cfg.where), progress=progress)
    print(f"{out}: {len(selection.rows)} of {selection.total} samples of {cfg.path}, where {selection.where}")

"""`sdscratch data select`: some samples of a folder of shards, by a condition on their records."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_paths import in_path, out_folder
from sdscratch.console import progress_bar
from sdscratch.prepare.select import select


def run(cfg: DictConfig) -> None:
    """Write to `out` which samples of `path` fit `where`."""
    path, out = in_path(cfg), out_folder(cfg)
    with progress_bar("reading records") as progress:
        selection = select(path, out, str(cfg.where), progress=progress)
    print(f"{out}: {len(selection.rows)} of {selection.total} samples of {cfg.path}, where {selection.where}")

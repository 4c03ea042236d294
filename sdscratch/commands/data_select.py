"""`sdscratch data select`: some samples of a folder of shards, by a condition on their records."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from sdscratch.errors import ConfigError
from sdscratch.prepare.select import select


def run(cfg: DictConfig) -> None:
    """Write to `out` which samples of `path` fit `where`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("reading records", total=None)
        selection = select(
            Path(cfg.path),
            Path(cfg.out),
            str(cfg.where),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    print(f"{cfg.out}: {len(selection.rows)} of {selection.total} samples of {cfg.path}, where {selection.where}")

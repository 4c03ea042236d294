"""`sdscratch data filter`: metadata rows -> the rows that rules keep."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from sdscratch.config import build
from sdscratch.console import warn
from sdscratch.errors import ConfigError
from sdscratch.prepare.filter.filter import Filter


def run(cfg: DictConfig) -> None:
    """Filter `path` into `out` by `rules`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("filtering", total=None)
        settings = (cfg.on_missing, cfg.on_bad, cfg.memory, cfg.engine, cfg.workers)
        rows = Filter(build(cfg.rules), *settings, lambda done, total: bar.update(task, completed=done, total=total))
        funnel = rows.write(Path(cfg.path), Path(cfg.out))
    for rule, columns in funnel.skipped.items():
        warn(f"{rule} was not applied to {sum(columns.values()):,} rows, which have no {' and no '.join(columns)}")
    for name, why in funnel.unreadable.items():
        warn(f"{name} was left out: {why}")
    fell = ", ".join(f"{count:,} to {rule}" for rule, count in funnel.dropped.items() if count)
    print(f"{cfg.out}: {funnel.kept:,} of {funnel.rows:,} rows kept; fell: {fell or 'none'}")

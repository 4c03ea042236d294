"""`sdscratch data filter`: metadata rows -> the rows that rules keep."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_paths import in_path, out_folder
from sdscratch.config import build
from sdscratch.console import progress_bar, warn
from sdscratch.prepare.filter.filter import Filter


def run(cfg: DictConfig) -> None:
    """Filter `path` into `out` by `rules`."""
    path, out = in_path(cfg), out_folder(cfg)
    with progress_bar("filtering") as progress:
        settings = (cfg.on_missing, cfg.on_bad, cfg.memory, cfg.engine, cfg.workers)
        funnel = Filter(build(cfg.rules), *settings, progress).write(path, out)
    for rule, columns in funnel.skipped.items():
        warn(f"{rule} was not applied to {sum(columns.values()):,} rows, which have no {' and no '.join(columns)}")
    for name, why in funnel.unreadable.items():
        warn(f"{name} was left out: {why}")
    fell = ", ".join(f"{count:,} to {rule}" for rule, count in funnel.dropped.items() if count)
    print(f"{out}: {funnel.kept:,} of {funnel.rows:,} rows kept; fell: {fell or 'none'}")

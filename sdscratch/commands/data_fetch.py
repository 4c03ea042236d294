"""`sdscratch data fetch`: the files of a published collection, after saying what they are."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from sdscratch.config import build
from sdscratch.errors import ConfigError
from sdscratch.prepare.fetch.fetch import Fetch, size_in_words
from sdscratch.prepare.fetch.sources import Mirror


def run(cfg: DictConfig) -> None:
    """Fetch the files of `source` into `out`. At a terminal it asks first, unless `yes`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    source = build(cfg.source)
    if cfg.mirror:
        source = Mirror(source, Path(cfg.mirror))
    columns = (TextColumn("fetching"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        bar.stop()  # until there is an answer
        task = bar.add_task("", total=None)
        fetch = Fetch(
            source, Path(cfg.out), source.files(), lambda n, total: bar.update(task, completed=n, total=total)
        )
        for line in fetch.said():
            print(line)
        if cfg.dry_run or (fetch.todo and not cfg.yes and not _agreed()):
            print("nothing was fetched")
            return
        bar.start()
        record = fetch.write()
    print(f"{cfg.out}: {len(record)} files, {size_in_words(sum(file['size'] for file in record.values()))}, checked")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return True
    return input("Fetch them? [y/N] ").strip().lower() in ("y", "yes")

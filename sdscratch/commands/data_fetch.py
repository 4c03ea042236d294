"""`sdscratch data fetch`: the files of a published collection, after saying what they are."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn

from sdscratch.commands.data_paths import out_folder, required
from sdscratch.config import build
from sdscratch.console import progress_bar
from sdscratch.prepare.fetch.fetch import Fetch, size_in_words
from sdscratch.prepare.fetch.sources import Mirror


def run(cfg: DictConfig) -> None:
    """Fetch the files of `source` into `out`. At a terminal it asks first, unless `yes`."""
    out, source = out_folder(cfg), build(cfg.source)
    if cfg.mirror is not None:
        source = Mirror(source, Path(required(cfg, "mirror", "a folder, or null for the source itself")))
    fetch = Fetch(source, out, source.files())
    for line in fetch.said():
        print(line)
    if cfg.dry_run or (fetch.todo and not cfg.yes and not _agreed()):
        print("nothing was fetched")
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with progress_bar("fetching", *columns) as progress:
        record = fetch.write(progress)
    print(f"{out}: {len(record)} files, {size_in_words(sum(file['size'] for file in record.values()))}, checked")


def _agreed() -> bool:
    if not sys.stdin.isatty():
        return True
    return input("Fetch them? [y/N] ").strip().lower() in ("y", "yes")

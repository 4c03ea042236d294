"""`sdscratch data download`: rows with URLs -> shards of pictures."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sdscratch.config import build
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import DROPPED
from sdscratch.errors import ConfigError
from sdscratch.prepare.download.downloader import Count, Downloader
from sdscratch.prepare.download.url_rows import UrlRows


def run(cfg: DictConfig) -> None:
    """Download the rows of `path` into `out`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    form, manners = build(cfg.pictures), build(cfg.manners)
    columns = [TextColumn("downloading"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[fell]} fell")]
    with Progress(
        *columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not sys.stderr.isatty()
    ) as bar:
        task = bar.add_task("", total=None, fell=0)

        def show(count: Count) -> None:
            bar.update(task, completed=count.settled, fell=count.dropped)

        downloader = Downloader(form, manners, cfg.source, cfg.licence, cfg.shard_size, cfg.workers, progress=show)
        rows = UrlRows(Path(cfg.path))
        bar.update(task, total=len(rows))
        if cfg.engine == "local":
            manifest = downloader.write(rows, Path(cfg.out))
        else:
            from sdscratch.prepare.download import img2dataset

            manifest = img2dataset.write(downloader, rows, Path(cfg.out), _python(cfg))
    print(_report(Path(cfg.out), manifest, len(rows)))


def _python(cfg: DictConfig) -> str:
    if cfg.engine != "img2dataset":
        raise ConfigError(f"engine={cfg.engine!r} is unknown; expected local or img2dataset")
    if not cfg.img2dataset_python:
        raise ConfigError(
            "engine=img2dataset runs in an environment of its own: `python -m venv V; V/bin/pip install img2dataset`, "
            "then img2dataset_python=V/bin/python"
        )
    return str(cfg.img2dataset_python)


def _report(out: Path, manifest: Manifest, rows: int) -> str:
    """What is where, and how many rows fell for which reason."""
    fell = sum(manifest.dropped.values())
    lines = [f"{count:>9}  {reason}" for reason, count in Counter(manifest.dropped).most_common()]
    named = f"; each is named in {out / DROPPED}" if fell else ""
    where = f"{out}: {manifest.total} pictures of {rows} rows in {len(manifest.shards)} shards"
    return "\n".join([*lines, f"{where}, {fell} fell{named}"])

"""`sdscratch data pack`: a collection -> image shards, or tars made elsewhere -> a folder that training reads."""

from __future__ import annotations

import sys
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from sdscratch.config import build
from sdscratch.data.manifest import Manifest
from sdscratch.errors import ConfigError
from sdscratch.prepare.pack.adopt import BAD, Tars
from sdscratch.prepare.pack.packer import Packer


def run(cfg: DictConfig) -> None:
    """Pack the collection at `path` into `out`, or adopt the tars at `path`."""
    collection = build(cfg.collection)
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("packing", total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if isinstance(collection, Tars):
            folder = collection.path
            if cfg.out and Path(cfg.out) != Path(folder):
                raise ConfigError("kind=webdataset adopts tars where they are: leave out= empty")
            manifest = collection.adopt(cfg.on_bad, cfg.workers, cfg.engine, progress)
        else:
            if not cfg.out:
                raise ConfigError("out is empty: expected a folder, `.` for this one")
            folder = cfg.out
            packer = Packer(build(cfg.pictures), cfg.shard_size, cfg.on_bad, cfg.workers, cfg.engine, progress)
            manifest = packer.pack(collection, Path(folder))
    if isinstance(collection, Tars) and (named := Path(folder) / BAD).exists():
        bad = len(named.read_text().splitlines())
        print(f"warning: {bad} bad samples stay in the tars; they are named in {named}", file=sys.stderr)
    print(f"{folder}: {manifest.total} samples in {len(manifest.shards)} shards{_fallen(manifest)}")


def _fallen(manifest: Manifest) -> str:
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(manifest.dropped.items()))
    return f"; {sum(manifest.dropped.values())} left out: {reasons}" if reasons else ""

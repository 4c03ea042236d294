"""`sdscratch data pack`: a collection -> image shards, or tars made elsewhere -> a folder that training reads."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sdscratch.commands.data_fallen import fallen
from sdscratch.commands.data_paths import in_path, optional, out_folder
from sdscratch.config import build
from sdscratch.console import progress_bar, warn
from sdscratch.errors import ConfigError
from sdscratch.prepare.pack.adopt import BAD, Tars
from sdscratch.prepare.pack.packer import Packer


def run(cfg: DictConfig) -> None:
    """Pack the collection at `path` into `out`, or adopt the tars at `path`."""
    in_path(cfg)  # which is the collection's
    collection = build(cfg.collection)
    if isinstance(collection, Tars):
        _adopt(cfg, collection)
        return
    out = out_folder(cfg)
    with progress_bar("packing") as progress:
        packer = Packer(build(cfg.pictures), cfg.shard_size, cfg.on_bad, cfg.engine, cfg.workers, progress)
        manifest = packer.pack(collection, out)
    print(f"{out}: {manifest.total} pictures in {len(manifest.shards)} shards{fallen(out, manifest.dropped)}")


def _adopt(cfg: DictConfig, tars: Tars) -> None:
    if (out := optional(cfg, "out")) is not None and Path(out) != Path(tars.path):
        raise ConfigError("kind=webdataset adopts tars where they are: leave out= empty")
    with progress_bar("checking") as progress:
        manifest = tars.adopt(cfg.on_bad, cfg.engine, cfg.workers, progress)
    if (named := Path(tars.path) / BAD).exists():
        warn(f"{len(named.read_text().splitlines())} bad samples stay in the tars; they are named in {named}")
    print(f"{tars.path}: {manifest.total} pictures in {len(manifest.shards)} shards")

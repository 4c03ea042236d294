"""`sdscratch data dedup`: which pictures of a folder are nearly the same as others?"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from omegaconf import DictConfig

from sdscratch.commands.data_paths import in_path, optional
from sdscratch.console import progress_bar
from sdscratch.errors import ConfigError
from sdscratch.prepare.dedup import find_duplicates, keep_unique

SHOWN = 10


def run(cfg: DictConfig) -> None:
    """Say what in `path` is a duplicate, and of what; with `out`, select what is none."""
    path, against, out = in_path(cfg), [Path(str(folder)) for folder in cfg.against], optional(cfg, "out")
    if "" in map(str, cfg.against):
        raise ConfigError(f"against is {list(cfg.against)}: expected folders, `.` for this one")
    with progress_bar("hashing") as progress:
        found = find_duplicates(path, against, cfg.distance, cfg.engine, cfg.workers, progress)
    if out is not None:
        keep_unique(path, Path(out), found, cfg.distance, against)
    for duplicate in found.duplicates[:SHOWN]:
        print(f"{duplicate.key} is like {duplicate.of} of {duplicate.folder} ({duplicate.distance} bits differ)")
    if len(found.duplicates) > SHOWN:
        print(f"... and {len(found.duplicates) - SHOWN} more")
    of = Counter(duplicate.folder for duplicate in found.duplicates)
    where = ", ".join(f"{count} of samples in {folder}" for folder, count in of.items())
    unreadable = f"; {found.unreadable} could not be decoded" if found.unreadable else ""
    print(
        f"{path}: {len(found.duplicates)} of {found.samples} samples are duplicates{': ' * bool(where)}{where}{unreadable}"
    )
    if out is not None:
        print(f"{out}: the {len(found.kept)} others")

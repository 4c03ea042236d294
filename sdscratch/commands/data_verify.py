"""`sdscratch data verify`: is a folder of shards what its manifest says?"""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_paths import in_path
from sdscratch.console import progress_bar
from sdscratch.errors import DataError
from sdscratch.prepare.verify import verify

SHOWN = 20


def run(cfg: DictConfig) -> None:
    """Print what is wrong with `path`; raise DataError naming the shards if anything is."""
    with progress_bar("verifying") as progress:
        verdict = verify(in_path(cfg), cfg.decode, cfg.engine, cfg.workers, progress)
    for problem in verdict.problems[:SHOWN]:
        print(problem)
    if len(verdict.problems) > SHOWN:
        print(f"... and {len(verdict.problems) - SHOWN} more")
    if verdict.problems:
        shards = sorted({problem.shard for problem in verdict.problems})
        named = ", ".join(shards[:5]) + (f" and {len(shards) - 5} more" if len(shards) > 5 else "")
        raise DataError(
            f"{cfg.path} is not as it was written: {named}. Restore these files, or write the folder again."
        )
    known = f", but for {verdict.known_bad} that were named when they were adopted" if verdict.known_bad else ""
    dropped = f", {verdict.dropped} fell when they were written" if verdict.dropped else ""
    std = "" if verdict.std is None else f", latents of standard deviation {verdict.std:.4g} before scaling"
    print(f"{cfg.path}: {verdict.samples} samples in {verdict.shards} shards are whole{known}{dropped}{std}")

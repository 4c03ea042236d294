"""Where verbs of data write to, and what they say at their end of what fell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from omegaconf import DictConfig

from sdscratch.data.shards import DROPPED
from sdscratch.errors import ConfigError


def out_folder(cfg: DictConfig) -> Path:
    """The folder `out`. Raises ConfigError where it is empty, which would be this folder."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    return Path(cfg.out)


def fallen(out: Path, dropped: Mapping[str, int]) -> str:
    """How many samples fell for which reason, most of all first, as the end of a sentence; nothing where none did."""
    if not dropped:
        return ""
    reasons = sorted(dropped.items(), key=lambda reason: (-reason[1], reason[0]))
    named = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    return f"; {sum(dropped.values())} fell ({named}), each named in {out / DROPPED}"

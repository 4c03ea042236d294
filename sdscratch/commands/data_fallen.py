"""What verbs of data say at their end of what fell."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sdscratch.data.shards import DROPPED


def fallen(out: Path, dropped: Mapping[str, int]) -> str:
    """How many samples fell for which reason, most of all first, as the end of a sentence; nothing where none did."""
    if not dropped:
        return ""
    reasons = sorted(dropped.items(), key=lambda reason: (-reason[1], reason[0]))
    named = ", ".join(f"{reason}: {count}" for reason, count in reasons)
    return f"; {sum(dropped.values())} fell ({named}), each named in {out / DROPPED}"

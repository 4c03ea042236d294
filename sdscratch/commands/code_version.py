"""Which version of this code is running."""

from __future__ import annotations

import subprocess
from pathlib import Path

import sdscratch


def commit() -> str | None:
    """Of the checkout that this code lies in, with "+changes" where files differ from it; None where it is installed."""
    root = Path(sdscratch.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    words = ["git", "-C", str(root), "describe", "--always", "--exclude=*", "--abbrev=40", "--dirty=+changes"]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None

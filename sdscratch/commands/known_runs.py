"""Runs by the names that people give them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from sdscratch.config import compose


def did_you_mean_run(name: str) -> str:
    """`; did you mean 'runs/try1'?` where paths.runs holds a run of that name or nearly that; nothing elsewhere."""
    root = Path(compose("train").paths.runs)
    states = [*root.glob("*/state.json"), *root.glob("*/*/state.json")]
    runs = {str(state.parent.relative_to(root)): state.parent for state in states}
    path = Path(name)
    wanted = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    near = [name] if name in runs else get_close_matches(wanted, runs, n=1, cutoff=0.7)
    return f"; did you mean {str(runs[near[0]])!r}?" if near else ""

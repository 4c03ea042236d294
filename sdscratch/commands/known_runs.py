"""Runs by the names that people give them."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from sdscratch.config import compose
from sdscratch.run_folder import runs_below


def did_you_mean_run(name: str) -> str:
    """`; did you mean 'runs/try1'?` where paths.runs holds a run of that name or nearly that; nothing elsewhere."""
    root = Path(compose("train").paths.runs)
    runs = runs_below(root)
    path = Path(name)
    wanted = str(path.relative_to(root)) if path.is_relative_to(root) else path.name
    near = [name] if name in runs else get_close_matches(wanted, runs, n=1, cutoff=0.7)
    return f"; did you mean {str(runs[near[0]].path)!r}?" if near else ""

"""python collectives.py OUT WORDS: `sdscratch WORDS`, and into OUT what ranks say to each other from one optimizer step to the
next: a JSON list per step, of the names of c10d operations."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from sdscratch.cli import main

with profile(activities=[ProfilerActivity.CPU]) as profiler:
    assert main(sys.argv[2:]) == 0
steps: list[list[str]] = [[]]
for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
    if event.name.startswith("Optimizer.step#"):
        steps.append([])
    elif event.name.startswith("c10d::"):
        steps[-1].append(event.name)
Path(sys.argv[1]).write_text(json.dumps(steps))

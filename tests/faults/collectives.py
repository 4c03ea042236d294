"""python collectives.py OUT WORDS: `sdscratch WORDS`, and into OUT what ranks say to each other between optimizer steps: a JSON
object per step, of the names of c10d operations (`asked`), how many numbers each all-reduce was of (`sizes`), and how many
operations were asked for while gradients were still being computed (`early`)."""

from __future__ import annotations

import json
import sys
from math import prod
from pathlib import Path
from typing import Any

from torch.profiler import ProfilerActivity, profile

from sdscratch.cli import main

COMPUTES = "autograd::engine::evaluate_function"

with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
    assert main(sys.argv[2:]) == 0
steps: list[dict[str, Any]] = [{"asked": [], "sizes": [], "early": 0}]
for event in sorted(profiler.events(), key=lambda event: event.time_range.start):
    if event.name.startswith("Optimizer.step#"):
        steps.append({"asked": [], "sizes": [], "early": 0})
    elif event.name.startswith("c10d::"):
        steps[-1]["asked"].append(event.name)
    elif event.name == "gloo:all_reduce":
        steps[-1]["sizes"].append(prod(event.input_shapes[0]))
    elif event.name.startswith(COMPUTES) and not event.name.endswith("AccumulateGrad"):
        steps[-1]["early"] = len(steps[-1]["asked"])
Path(sys.argv[1]).write_text(json.dumps(steps))

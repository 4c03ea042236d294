"""What sampling costs beside the network, and how TextToImage compares with StableDiffusionPipeline, on one core.

OMP_NUM_THREADS=1 python experiments/2026-11-26-sampling/measure.py RUN [STEPS [ROUNDS]]

All times are CPU time of this process: on a busy machine they say more than a clock.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from diffusers import StableDiffusionPipeline

from sdscratch import TextToImage
from sdscratch.run_folder import RunFolder

PROMPT = "a red circle on the left on a white background"
STEPS = int(sys.argv[2]) if len(sys.argv) > 2 else 20
ROUNDS = int(sys.argv[3]) if len(sys.argv) > 3 else 7
SETTINGS = {"num_inference_steps": STEPS, "guidance_scale": 3.0}


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """From now on, owner.name adds what it takes to spent[part]."""
    function = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        start = time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            spent[part] += time.process_time() - start

    setattr(owner, name, wrapper)


def shares(model: str, batch: int) -> dict[str, float]:
    """Shares of one call: the network, text encoder, VAE, and all the rest, as medians over calls."""
    pipe = TextToImage.from_pretrained(model, "cpu")
    spent: dict[str, float] = defaultdict(float)
    timed(pipe.unet, "forward", spent, "network")
    timed(pipe.encoders, "text", spent, "text encoder")
    timed(pipe.encoders, "decode", spent, "VAE")
    found = defaultdict(list)
    for _ in range(ROUNDS + 1):
        spent.clear()
        whole = seconds(lambda: pipe([PROMPT] * batch, sampler="euler", **SETTINGS))
        rest = whole - sum(spent.values())
        for part, value in {**spent, "rest": rest}.items():
            found[part].append(value / whole)
        found["rest over network"].append(rest / spent["network"])
        found["seconds"].append(whole)
    return {part: round(median(values[1:]), 4) for part, values in found.items()}  # the first call warms up


def against_diffusers(model: str, batch: int) -> dict[str, float]:
    """CPU time over ours, a round being ours, theirs, ours again, theirs again, in turns from either end (ABBA)."""
    ours = TextToImage.from_pretrained(model, "cpu")
    theirs = StableDiffusionPipeline.from_pretrained(RunFolder(model).model_folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    work = {
        "ours": lambda: ours([PROMPT] * batch, sampler="euler", **SETTINGS),
        "theirs": lambda: theirs([PROMPT] * batch, **SETTINGS),
        "ours again": lambda: ours([PROMPT] * batch, sampler="euler", **SETTINGS),
    }
    for each in work.values():
        each()
    ratios = defaultdict(list)
    for number in range(ROUNDS):
        spent = dict.fromkeys(work, 0.0)
        for name in [*work, *reversed(work)] if number % 2 else [*reversed(work), *work]:
            spent[name] += seconds(work[name])
        ratios["theirs"].append(spent["theirs"] / spent["ours"])
        ratios["null: ours again"].append(spent["ours again"] / spent["ours"])
    return {name: round(median(values), 4) for name, values in ratios.items()}


torch.set_num_threads(1)
for batch in (1, 8):
    result = {"batch": batch, "steps": STEPS, "shares": shares(sys.argv[1], batch)}
    print(json.dumps({**result, "CPU time over ours": against_diffusers(sys.argv[1], batch)}))

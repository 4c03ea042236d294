"""How few calls of the network draw pictures that the judge of shapes reads as well as those of DDIM at 50 steps.

OMP_NUM_THREADS=1 python experiments/2026-11-26-solver-steps/run.py RUN [COUNT]

The same prompts (COUNT of seen pairs of colour and shape, COUNT of unseen ones) and the same noise for everybody, so that
pictures are compared one by one. Writes numbers and a grid of pictures beside this file, named after RUN.
"""

import json
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sdscratch import TextToImage
from sdscratch.data.grid import labelled_grid
from sdscratch.data.shapes import prompts
from sdscratch.evaluation.shapes_judge import judge

HERE = Path(__file__).parent
DDIM_50 = {"sampler": "ddim", "num_inference_steps": 50}
DPMPP_20 = {"sampler": "dpmpp_2m", "num_inference_steps": 20}
MIDDLE = (0.25, 4.0)  # Karras' sigma: on the path of flow matching from a fifth to four fifths of the way
NOT_THE_END = (0.25, 1000.0)
OTHER_NOISE = "ddim 50, other noise"
WAYS = {
    "ddim 50": DDIM_50,
    OTHER_NOISE: DDIM_50,
    "ddim 20": {"sampler": "ddim", "num_inference_steps": 20},
    "dpmpp_2m 20": DPMPP_20,
    "dpmpp_2m 10": {"sampler": "dpmpp_2m", "num_inference_steps": 10},
    "the model's own": {},
    "dpmpp_2m 20, guided in the middle": {**DPMPP_20, "guidance_interval": MIDDLE},
    "dpmpp_2m 20, not guided at the end": {**DPMPP_20, "guidance_interval": NOT_THE_END},
    "dpmpp_2m 20, guidance 4": {**DPMPP_20, "guidance_scale": 4.0},
    "dpmpp_2m 20, guidance 4 in the middle": {**DPMPP_20, "guidance_scale": 4.0, "guidance_interval": MIDDLE},
    "dpmpp_2m 20, no guidance": {**DPMPP_20, "guidance_scale": 1.0},
}


def compare(run: str, count: int) -> None:
    """All ways of drawing with this model."""
    pipe = TextToImage.from_pretrained(run, device="cpu")
    rows = [0]
    pipe.unet.register_forward_pre_hook(lambda network, inputs: rows.__setitem__(0, rows[0] + len(inputs[0])))
    asked = [pair for split in ("val", "unseen") for pair in prompts(split, count, seed=0)]
    right: dict[str, list[bool]] = {}
    table = {}
    for way, settings in WAYS.items():
        rows[0], start = 0, time.process_time()
        seed = 10**6 if way == OTHER_NOISE else 0
        drawn = pipe([text for text, _ in asked], seed=seed, batch_size=64, **settings)
        seconds = time.process_time() - start
        read = [(judge(picture), scene) for picture, (_, scene) in zip(drawn, asked, strict=True)]
        right[way] = [
            all(getattr(seen, name) == getattr(scene, name) for name in ("colour", "shape", "position", "background"))
            for seen, scene in read
        ]
        table[way] = {
            "rows of the network per picture": rows[0] / len(asked),
            "CPU seconds": round(seconds, 1),
            "right, seen pairs": sum(right[way][:count]) / count,
            "right, unseen pairs": sum(right[way][count:]) / count,
            **against(right[way], right["ddim 50"]),
        }
        print(way, json.dumps(table[way]), flush=True)
    (HERE / f"{Path(run).name}.json").write_text(json.dumps({"prompts": len(asked), "ways": table}, indent=1) + "\n")


def against(ours: list[bool], theirs: list[bool]) -> dict[str, float]:
    """How many more of the pictures are right, with the 95 % interval of a difference between pairs."""
    won = sum(a and not b for a, b in zip(ours, theirs, strict=True))
    lost = sum(b and not a for a, b in zip(ours, theirs, strict=True))
    count = len(ours)
    more = (won - lost) / count
    return {
        "right where ddim 50 is not": won,
        "wrong where ddim 50 is right": lost,
        "more right than ddim 50": round(more, 4),
        "give or take": round(1.96 * math.sqrt(max(0.0, won + lost - (won - lost) ** 2 / count)) / count, 4),
    }


def distances(run: str, count: int = 32) -> None:
    """How far pictures are from those that nearly exact steps give, which no judge has to see: root mean square of pixels."""
    pipe = TextToImage.from_pretrained(run, device="cpu")
    texts = [text for text, _ in prompts("val", count, seed=0)]

    def pixels(sampler: str, steps: int) -> np.ndarray:
        drawn = pipe(texts, seed=0, batch_size=count, sampler=sampler, num_inference_steps=steps)
        return np.stack([np.asarray(picture, np.float64) for picture in drawn])

    exact = pixels("heun", 100)
    found = {
        f"{sampler} {steps}": round(float(np.sqrt(np.mean((pixels(sampler, steps) - exact) ** 2))), 2)
        for sampler in ("ddim", "dpmpp_2m")
        for steps in (5, 10, 20, 50)
    }
    print(json.dumps(found))
    file = HERE / f"{Path(run).name}.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "grey levels from heun 100": found}, indent=1) + "\n")


def grid(run: str) -> None:
    """A few pictures of each way, of seen pairs and of unseen ones, for people to look at."""
    pipe = TextToImage.from_pretrained(run, device="cpu")
    texts = [text for split in ("val", "unseen") for text, _ in prompts(split, 4, seed=0)]
    rows = [pipe(texts, seed=10**6 if way == OTHER_NOISE else 0, **settings) for way, settings in WAYS.items()]
    labelled_grid(rows, [*WAYS], texts, cell=96).save(HERE / f"{Path(run).name}.png")


if __name__ == "__main__":
    torch.set_num_threads(1)
    compare(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 256)
    distances(sys.argv[1])
    grid(sys.argv[1])

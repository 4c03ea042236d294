"""All nine stages of the curriculum, small: `make curriculum-mini`, or python experiments/2026-11-26-curriculum-mini/run.py.

The shipped phases, with networks of the quickstart's size, pictures of 32 px, and rates that fit both. A second call goes on.
"""

import os
import sys
import time
from pathlib import Path

from prepare import SEEDS, prepare

from sdscratch.cli import main

NAME, SIZE = "mini", 32
DATA = Path(os.environ.get("SDSCRATCH_DATA", "data")) / NAME
PACK = Path(os.environ.get("SDSCRATCH_DATA_PACK", "../shared/data"))

SMALL = (
    *("trainer=auto", "logger=none", f"dataset.resolution={SIZE}", "dataset.num_workers=0", "dataset.holdout=0.06"),
    *("optimizer.betas=[0.9,0.99]", "lr_schedule.warmup_steps=20", "stage.channels_last=false"),
    *("callbacks.metrics.every=25", "callbacks.progress.every=100", "callbacks.checkpoints={every:200,keep_last:1}"),
    *("callbacks.validation.every=100", "callbacks.previews.every=10000", "callbacks.plots.every=10000"),
)
IMAGES = (f"dataset.path={DATA}/laion_broad",)
AUTOENCODER = (
    *("vae=kl_shapes", "max_steps=1000", "global_batch_size=16", "optimizer.lr=2.0e-3", "stage.kl_weight=5.0e-4"),
    *("stage.ema_decay=0.99", "dataset.random_crop=false", "dataset.flip=true", "callbacks.validation.every=500"),
)
CLIP = (
    *("text_encoder=clip_shapes", "text_encoder.vocab_size=4096", "text_encoder.max_length=32", "max_steps=800"),
    *("global_batch_size=64", "optimizer.lr=1.0e-3", "optimizer.weight_decay=0.05", "stage.ema_decay=0.98"),
    *("dataset.random_crop=false", "callbacks.validation.every=400"),
)
DIFFUSION = (
    *("model=unet_shapes", "model.gradient_checkpointing=false", "global_batch_size=16", "stage.ema_decay=0.99"),
    *("dataset.val_samples=120", "caption_dropout=0.1", "sampler.num_inference_steps=30", "sampler.guidance_scale=3.0"),
    "stage.preview_prompts=[a dog runs through the grass,two men stand on a street,a child in a red shirt,"
    "a mountain and a lake,a woman with sunglasses smiles,a blue circle on a white background,a boy jumps,a city at night]",
)
PHASES = {  # optimizer steps, peak rate: 15 to 200 times the published ones, as the network is two hundred times smaller
    "p1_laion_broad": (1000, 1.5e-3),
    "p2_laion_refined": (250, 4.0e-4),
    "p3_synthetic": (300, 4.0e-4),
    "p4_faces": (200, 3.0e-4),
    "p5_bodies": (200, 3.0e-4),
    "p6_consolidation": (250, 2.0e-4),
    "p7_final": (400, 2.0e-4),
}


def words(key: str, values: tuple[str, ...]) -> str:
    return f"{key}=[{','.join(values)}]"


def curriculum(*phases: str) -> None:
    each = [
        words("overrides.s1_autoencoder", IMAGES + AUTOENCODER),
        words("overrides.s2_clip", IMAGES + CLIP),
        *(
            words(f"overrides.{name}", (*DIFFUSION, f"max_steps={steps}", f"optimizer.lr={rate}"))
            for name, (steps, rate) in PHASES.items()
        ),
    ]
    chosen = [word for word in each if word.partition("=")[0].removeprefix("overrides.") in phases]
    call("curriculum", f"name={NAME}", f"paths.data={DATA}", words("phases", phases), words("train", SMALL), *chosen)


def call(*arguments: str) -> None:
    if code := main(arguments):
        sys.exit(code)


start = time.perf_counter()
kind = prepare(PACK, DATA)
print(f"{DATA}: {kind}")
curriculum("s1_autoencoder", "s2_clip")
for source in SEEDS:
    out = f"out={DATA}/latents_{SIZE}/{source}"
    call("data", "encode", f"path={DATA}/{source}", out, f"model=runs/{NAME}/s1_autoencoder", f"resolution={SIZE}")
curriculum("s1_autoencoder", "s2_clip", *PHASES)
call("curriculum", "status", f"name={NAME}")
call("curriculum", "report", f"name={NAME}")
print(f"{(time.perf_counter() - start) / 60:.1f} minutes")

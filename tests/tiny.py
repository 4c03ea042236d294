"""The tiny experiment, as tests run it; and a small disk."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

BARE = ("callbacks.previews=null", "callbacks.plots=null")
"""Overrides for tests that look at nothing but numbers."""

SMALLER = ("model.block_out_channels=[16, 16]", "model.attention_head_dim=2", "callbacks.validation=null", *BARE)
"""Overrides for tests to which it does not matter what is trained."""


SMALLEST_UNET = {
    "block_out_channels": (16, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 16,
    "attention_head_dim": 2,
}
"""Of Stable Diffusion's kind, for tests that need one of each sort of block."""


def compose_tiny(folder: Path, data: Path, *overrides: str) -> DictConfig:
    """Run in `folder`, with its scenes drawn into `data` unless they are there; at one thread."""
    from sdscratch.config import compose

    return compose("train", ["experiment=tiny", f"paths.runs={folder}", f"paths.data={data}", "threads=1", *overrides])


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Writing more raises OSError, as on a full disk; works for root as well."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


TINY_PHASES = (
    "model=unet_tiny",
    "model.block_out_channels=[16,16]",
    "model.attention_head_dim=2",
    "vae=kl_tiny",
    "text_encoder=clip_tiny",
    "dataset=shapes",
    "dataset.count=64",
    "dataset.val_count=16",
    "dataset.resolution=32",
    "dataset.val_samples=16",
    "trainer=cpu",
    "logger=none",
    "threads=1",
    "global_batch_size=4",
    "max_steps=4",
    "lr_schedule.warmup_steps=1",
    "sampler.num_inference_steps=4",
    "callbacks.previews=null",
    "callbacks.plots=null",
    "callbacks.metrics.every=1",
    "callbacks.checkpoints.every=2",
)
"""Words that make any phase of a curriculum as small as the tiny experiment, and leave it what makes it that phase."""

"""Tiny stages for tests: built as `train` builds them, run for a few steps, and watched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from sdscratch.config import build
from sdscratch.data import DataModule, LatentCollate
from sdscratch.models import new_clip, new_vae
from sdscratch.models.encoders import FrozenEncoders, TextEncoder
from sdscratch.training import Autoencoder, Clip, LatentDiffusion, Stage, WarmupConstant

CAPTIONS = [
    "a red circle on a white background",
    "top: a blue ring",
    "a green square, left",
    "tan, purple cross, bottom",
]
TRAINING: dict[str, Any] = {
    "optimizer": partial(torch.optim.AdamW, lr=1e-3, fused=True),
    "lr_schedule": WarmupConstant(1),
    "global_batch_size": 4,
}


def latent_diffusion(cfg: DictConfig) -> tuple[LatentDiffusion, DataModule]:
    """The stage and its data of a diffusion configuration, its weights from seed 0."""
    torch.manual_seed(0)
    datamodule = build(cfg.dataset)
    encoders = FrozenEncoders(build(cfg.vae), build(cfg.text_encoder, captions=CAPTIONS))
    objective = build(cfg.objective)
    evenly = objective.noise_schedule.timesteps_at
    datamodule.collate = LatentCollate(cfg.seed, objective.timesteps, cfg.caption_dropout, (4, 8, 8), evenly)
    module = build(
        cfg.stage,
        network=build(cfg.model),
        encoders=encoders,
        objective=objective,
        sampling=build(cfg.sampler),
        optimizer=build(cfg.optimizer),
        lr_schedule=build(cfg.lr_schedule),
        global_batch_size=cfg.global_batch_size,
    )
    trainer = quiet_trainer(accumulate_grad_batches=cfg.trainer.accumulate_grad_batches)
    datamodule.trainer = module.trainer = trainer
    return module, datamodule


def small_vae() -> Any:
    """16 x 16 pixels become 4 x 4."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    return new_vae(**sizes, sample_size=16, mid_block_add_attention=False)


def autoencoder(**settings: Any) -> Autoencoder:
    """Of a small VAE."""
    module = Autoencoder(small_vae(), **{"kl_weight": 1e-4, **TRAINING, **settings})
    module.trainer = quiet_trainer()
    return module


def small_clip() -> TextEncoder:
    """32 wide, for images of 16 x 16 pixels."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8}
    return new_clip(CAPTIONS, **sizes, image_size=16, vocab_size=600, max_length=24)


def clip(**settings: Any) -> Clip:
    """Of a small CLIP."""
    module = Clip(small_clip(), **{**TRAINING, **settings})
    module.trainer = quiet_trainer()
    return module


def image_batch(captions: Sequence[str] = CAPTIONS, first: int = 0, size: int = 16) -> Any:
    """An ImageBatch of noise pictures at positions `first` and on; the same picture at the same position."""
    positions = range(first, first + len(captions))
    images = [torch.rand(3, size, size, generator=torch.Generator().manual_seed(p)) * 2 - 1 for p in positions]
    return {
        "images": torch.stack(images),
        "captions": list(captions),
        "positions": torch.tensor(positions),
        "keys": [f"{position:06d}" for position in positions],
        "quarantined": [],
    }


def quiet_trainer(**settings: Any) -> L.Trainer:
    """One that writes nothing and trains one step, unless told otherwise."""
    quiet = {name: False for name in ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")}
    return L.Trainer(**{"accelerator": "cpu", "max_steps": 1, **quiet, **settings})


def fit(module: Stage, batch: Any, **settings: Any) -> None:
    """Train on the same batch again and again."""
    loader = torch.utils.data.DataLoader([batch] * 100, batch_size=None, collate_fn=None)
    quiet_trainer(**settings).fit(module, loader)


@contextmanager
def texts_encoded(text: TextEncoder) -> Iterator[list[int]]:
    """How many texts reach the tower in here, each time that it is asked."""
    seen: list[int] = []
    hook = text.model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    yield seen
    hook.remove()


class PowerCut(Exception):
    """Stands for whatever may stop a run."""


@contextmanager
def watched(cut_after: int | None = None) -> Iterator[tuple[list[list[int]], list[float]]]:
    """What really happens in here: the positions of each micro-batch, and each optimizer step's learning rate.

    cut_after: micro-batches after which the next one raises PowerCut.
    """
    positions: list[list[int]] = []
    rates: list[float] = []
    seen = 0  # micro-batches, at the last step
    losses = LatentDiffusion.losses

    def watched_losses(module: LatentDiffusion, batch: Any) -> dict[str, Tensor]:
        if len(positions) == cut_after:
            raise PowerCut
        positions.append(batch["positions"].tolist())
        return losses(module, batch)

    def note_rate(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        nonlocal seen
        if len(positions) == seen:
            return  # it was only tried whether a step can be taken
        seen = len(positions)
        rate, *others = {group["lr"] for group in optimizer.param_groups}
        assert not others
        rates.append(rate)

    hook = register_optimizer_step_pre_hook(note_rate)
    try:
        with patch.object(LatentDiffusion, "losses", watched_losses):
            yield positions, rates
    finally:
        hook.remove()

"""Lightning's Trainer, as far as a run leaves it a choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig, OmegaConf

from sdscratch.commands import launch
from sdscratch.config import build
from sdscratch.data.loading import micro_batch_size
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder
from sdscratch.training import RunFolderIO
from sdscratch.training.preemption import without_lightnings_signals

FREE = (
    "accelerator",
    "strategy",
    "devices",
    "num_nodes",
    "precision",
    "accumulate_grad_batches",
    "benchmark",
    "deterministic",
    "detect_anomaly",
    "profiler",
)
"""What may be told to it. All else would stop, save, clip, log or replay data behind the back of what does that here."""

SETTLED = {
    "max_epochs": -1,
    "use_distributed_sampler": False,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "logger": False,
}
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # weights, their average and the optimizer stay in float32


def check_trainer(cfg: DictConfig) -> None:
    """Raise ConfigError for a setting of `trainer` that would break what a run promises."""
    settled = {**SETTLED, "max_steps": cfg.max_steps}
    for key, value in OmegaConf.to_container(cfg.trainer, resolve=True).items():  # type: ignore[union-attr]
        name = str(key)
        if name in FREE or name.startswith("_") or (name in settled and settled[name] == value):
            continue
        if name in settled:
            raise ConfigError(f"trainer.{name} is {value}, but has to be {settled[name]}: leave it as it is")
        raise ConfigError(
            f"trainer.{name} cannot be set: steps, data, clipping and files are not the trainer's business "
            f"here. It takes {', '.join(FREE)}"
        )
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise ConfigError(f"trainer.precision is {cfg.trainer.precision}; expected {', '.join(PRECISIONS)}")
    accumulate = cfg.trainer.get("accumulate_grad_batches", 1)
    micro_batch_size(cfg.global_batch_size, launch.world_size(cfg.trainer), accumulate)  # before any rank is started


def make_trainer(
    cfg: DictConfig, folder: RunFolder, callbacks: Sequence[L.Callback] = (), loggers: Sequence[Any] = ()
) -> L.Trainer:
    """Build it; it leaves signals alone, and says to the run folder what is in a checkpoint."""
    alone = launch.world_size(cfg.trainer) <= 1
    trainer = build(
        cfg.trainer,
        default_root_dir=str(folder.path),
        callbacks=list(callbacks),
        logger=list(loggers),
        # Else Lightning would make itself a part of what SLURM's or torchrun's variables say, whoever has left them there.
        plugins=[RunFolderIO(), *([LightningEnvironment()] if alone else [])],
        **({"strategy": "auto"} if alone else {}),
    )
    without_lightnings_signals(trainer)
    return trainer

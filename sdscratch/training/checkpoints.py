"""Saves the run, at step boundaries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, is_due


class Checkpoints(StepCallback):
    """Every `every` steps and at the end; keeps the newest `keep_last` and every step that is a multiple of `keep_every`."""

    def __init__(self, every: int, keep_last: int = 2, keep_every: int | None = None) -> None:
        if keep_last < 1:
            raise ConfigError(f"callbacks.checkpoints.keep_last is {keep_last}; expected 1 or more")
        self.every, self.keep_last, self.keep_every = every, keep_last, keep_every

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if is_due(trainer, step, self.every):
            run = RunFolder(trainer.default_root_dir)
            samples_seen = step * module.global_batch_size
            with module.aside():
                trainer.save_checkpoint(run.checkpoint_path(step), storage_options=(step, samples_seen))
                if trainer.is_global_zero:
                    run.prune_checkpoints(step, self.keep_last, self.keep_every)
                    run.set_state(step=step, samples_seen=samples_seen)


class RunFolderIO(TorchCheckpointIO):
    """Lets Lightning say what is in a checkpoint, and the run folder how it is written."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """storage_options: (step, samples_seen), for the side-car."""
        step, samples_seen = storage_options
        RunFolder(Path(path).parent.parent).write_checkpoint(checkpoint, step, samples_seen)

"""Saves the run, at step boundaries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sdscratch.errors import check_whole
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback


class Checkpoints(StepCallback):
    """Every `every` steps, at the end, and when the run is stopped.

    Keeps the newest `keep_last` and every step that is a multiple of `keep_every`.
    """

    def __init__(self, every: int, keep_last: int = 2, keep_every: int | None = None) -> None:
        super().__init__(every)
        check_whole("callbacks.checkpoints.keep_last", keep_last)
        if keep_every is not None:
            check_whole("callbacks.checkpoints.keep_every", keep_every)
        self.keep_last, self.keep_every = keep_last, keep_every

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if self.is_due(trainer, step) or module.report.stop:
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

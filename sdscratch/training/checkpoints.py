"""Saves the run, at step boundaries only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.plugins.io import TorchCheckpointIO

from sdscratch.checkpoint_file import Retention, load_tensors
from sdscratch.console import warn
from sdscratch.errors import CannotWriteError, check_whole
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised

MOST_FAILURES = 3
"""Saves in a row that may fail before the run stops: what it does from then on would be lost anyway."""


class Checkpoints(StepCallback):
    """Every `every` steps, at the end, and when the run is stopped.

    Keeps the newest `keep_last`, every step that is a multiple of `keep_every`, and the `keep_best` of lowest validation
    loss, among those saved at a step at which it was measured. A save that fails is said on stderr and costs nothing that
    was there; CannotWriteError after MOST_FAILURES of them in a row, or when it is the last step, of the run or of one that
    is stopped, that cannot be saved.
    """

    def __init__(self, every: int, keep_last: int = 2, keep_every: int | None = None, keep_best: int = 1) -> None:
        super().__init__(every)
        check_whole("callbacks.checkpoints.keep_last", keep_last)
        check_whole("callbacks.checkpoints.keep_best", keep_best, 0)
        if keep_every is not None:
            check_whole("callbacks.checkpoints.keep_every", keep_every)
        self.retention = Retention(keep_last, keep_every, keep_best)
        self.failures = 0

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if module.guard and module.guard.gave_up:
            return  # the run turns back, and must do so too if it is killed before it has
        report = module.report  # what is bad would crowd out one to go back to
        good = report.is_finite or report.overflow or step == trainer.max_steps
        if (self.is_due(trainer, step) and good) or module.report.stop:
            with module.aside():
                self.save(trainer, module, step)

    def save(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        """Save the run as it is after `step`, then let old checkpoints go. To be called on all ranks."""
        run, samples_seen = RunFolder(trainer.default_root_dir), module.samples_seen(step)
        about = {"step": step, "samples_seen": samples_seen, "val_loss": module.val_loss}
        trainer.save_checkpoint(run.checkpoint_path(step), storage_options=about)
        if error := trainer.strategy.broadcast(_failure(trainer)):  # the first rank alone has tried
            self.failures += 1
            if self.failures == MOST_FAILURES or step == trainer.max_steps or module.report.stop:
                raise CannotWriteError(error)
            if trainer.is_global_zero:
                warn(
                    f"step {step} is not saved: {error} Training goes on (failure {self.failures} of {MOST_FAILURES} in a row)"
                )
            return
        self.failures = 0
        self._prune(trainer, module, step)
        if trainer.is_global_zero:
            with said_not_raised("state.json is out of date"):
                run.set_state(step=step, samples_seen=samples_seen)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, Stage)
        self._prune(trainer, module, trainer.global_step)  # for a run that was killed between its last save and this

    def _prune(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if trainer.is_global_zero and module.report.is_finite:  # else an older one to go back to may be needed
            with said_not_raised("old checkpoints are not removed"):
                RunFolder(trainer.default_root_dir).prune_checkpoints(step, self.retention)


def _failure(trainer: L.Trainer) -> str | None:
    plugin = trainer.strategy.checkpoint_io
    assert isinstance(plugin, RunFolderIO)
    return plugin.failure


class RunFolderIO(TorchCheckpointIO):
    """Lets Lightning say what is in a checkpoint, and the run folder how it is written.

    failure: why the latest could not be written. Not raised here, where the other ranks would wait for this one for ever.
    """

    failure: str | None = None

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """storage_options: what the side-car says, as arguments of RunFolder.write_checkpoint."""
        self.failure = None
        try:
            RunFolder(Path(path).parent.parent).write_checkpoint(checkpoint, **storage_options)
        except CannotWriteError as error:
            self.failure = str(error)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """On the CPU, and never more than tensors and plain values, whatever is asked for."""
        return load_tensors(Path(path))

"""Callbacks that act once per optimizer step, counted from the start of the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L

from sdscratch.console import warn
from sdscratch.errors import CannotWriteError, RunFolderError, check_whole
from sdscratch.training.stage import Stage


class StepCallback(L.Callback):
    """`on_step` after each optimizer step with the number of steps done; never in the middle of an accumulation.

    They run in the order of the configuration: what fills the metrics row, what writes it, what saves.
    every: steps from one action to the next; the last step of a run is always one. Raises ConfigError below 1.
    """

    def __init__(self, every: int) -> None:
        check_whole(f"`every` of the callback {type(self).__name__}", every)
        self.every = every

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._steps_done = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, Stage)
        self.on_micro_batch(trainer, module, outputs, batch)
        if trainer.global_step > self._steps_done:
            self._steps_done = trainer.global_step
            self.on_step(trainer, module, self._steps_done)

    def on_micro_batch(self, trainer: L.Trainer, module: Stage, outputs: Any, batch: Any) -> None:
        """After each micro-batch; `outputs` is what training_step returned."""

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        """After optimizer step number `step`, counted from 1."""

    def is_due(self, trainer: L.Trainer, step: int) -> bool:
        """Every so many steps, and at the last one."""
        return step % self.every == 0 or step == trainer.max_steps


@contextmanager
def said_not_raised(consequence: str) -> Iterator[None]:
    """Say on stderr that a file cannot be written or read, and go on: training is worth more than what accompanies it."""
    try:
        yield
    except (OSError, CannotWriteError, RunFolderError) as error:
        warn(f"{consequence}: {error}")

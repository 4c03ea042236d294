"""How far the run is, for whoever watches: a bar on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import sys
import time

import lightning as L
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sdscratch.console import say
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback


class ProgressBar(StepCallback):
    """Steps, loss, rate and the time left. `every`: steps between lines where there is no terminal."""

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.progress: Progress | None = None
        self.loss = float("nan")

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.start, self.first_step = time.perf_counter(), trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<16}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]:.4f}  {task.fields[rate]:.1f} samples/s"),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
            )
            self.progress = Progress(*columns, console=Console(stderr=True))
            self.task = self.progress.add_task(
                type(module).__name__, total=trainer.max_steps, completed=self.first_step, loss=self.loss, rate=0.0
            )
            self.progress.start()

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if not trainer.is_global_zero:
            return
        due = self.is_due(trainer, step)
        if due or self.progress:
            seconds = time.perf_counter() - self.start
            rate = (step - self.first_step) * module.global_batch_size / seconds
        if due:
            self.loss = module.report.loss if module.report.is_finite else float("nan")
        if self.progress:
            self.progress.update(self.task, completed=step, loss=self.loss, rate=rate)
        elif due:
            left = (trainer.max_steps - step) * seconds / (step - self.first_step)
            say(
                f"{type(module).__name__}: step {step}/{trainer.max_steps}  loss {self.loss:.4f}  "
                f"{rate:.1f} samples/s  {left:.0f} s left"
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.close()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.close()

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self.progress:
            self.progress.stop()
            self.progress = None

"""How far the run is, for whoever watches: a bar on a terminal, a line per interval elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lightning as L
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from sdscratch.console import say
from sdscratch.errors import check_whole
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback
from sdscratch.training.throughput import Clock


@dataclass(frozen=True)
class _Reading:
    """What is shown. left, left_of_all: seconds to the end of the run, and of all phases that follow it."""

    loss: float
    learning_rate: float
    samples_per_second: float
    data_wait: float
    left: float
    left_of_all: float | None

    def __str__(self) -> str:
        numbers = (
            f"loss {self.loss:.4f}  lr {self.learning_rate:.2g}  {self.samples_per_second:.1f} samples/s  "
            f"data wait {self.data_wait:.0%}  {_time(self.left)} left"
        )
        return numbers if self.left_of_all is None else f"{numbers}, {_time(self.left_of_all)} with later phases"


class _BarAndReading(Progress):
    """The numbers on a line of their own below the bar, where a narrow terminal breaks them rather than cutting them off."""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["reading"]) for task in self.tasks)


class ProgressBar(StepCallback):
    """Steps, loss, learning rate, samples per second, the share of time spent waiting for data, and the time left.

    The time left is told from all of this session's steps, validation and previews included. `every`: steps between lines
    where there is no terminal. later_steps: optimizer steps of the phases still to come, taken to be as long as these.
    """

    def __init__(self, every: int, later_steps: int = 0) -> None:
        super().__init__(every)
        check_whole("callbacks.progress.later_steps", later_steps, 0)
        self.later_steps = later_steps
        self.progress: Progress | None = None

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, Stage)
        self.start, self.first_step = time.perf_counter(), trainer.global_step
        self._clock = Clock(module, trainer.global_step)
        if trainer.is_global_zero and sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self.progress = _BarAndReading(*columns, console=Console(stderr=True))
            self.task = self.progress.add_task(
                type(module).__name__, total=trainer.max_steps, completed=self.first_step, reading=""
            )
            self.progress.start()

    def on_train_batch_start(self, *_: Any) -> None:
        self._clock.batch_arrived()

    def on_micro_batch(self, trainer: L.Trainer, module: Stage, outputs: Any, batch: Any) -> None:
        self._clock.batch_done()

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if not trainer.is_global_zero:
            return
        if self.is_due(trainer, step):
            reading = self._read(trainer, module, step)
            if self.progress:
                self.progress.update(self.task, completed=step, reading=str(reading))
            else:
                say(f"{type(module).__name__}: step {step}/{trainer.max_steps}  {reading}")
        elif self.progress:
            self.progress.update(self.task, completed=step)

    def _read(self, trainer: L.Trainer, module: Stage, step: int) -> _Reading:
        left = trainer.max_steps - step
        seconds = (time.perf_counter() - self.start) / (step - self.first_step)
        return _Reading(
            loss=module.report.loss if module.report.is_finite else float("nan"),
            learning_rate=module.learning_rate(step - 1),
            **self._clock.rates(step),
            left=left * seconds,
            left_of_all=(left + self.later_steps) * seconds if self.later_steps else None,
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


def _time(seconds: float) -> str:
    """`0:00:07`, `2 days, 3:04:05`."""
    return str(timedelta(seconds=round(seconds)))

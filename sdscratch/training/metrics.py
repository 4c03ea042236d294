"""One row of numbers per interval: interval means of the losses, rates, and what other callbacks have measured."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, is_due


class Metrics(StepCallback):
    """Writes metrics.csv and hands the same row to the loggers.

    Losses are means over all samples of the interval and all ranks, summed on the device so that no step waits for the
    host. The sums are part of the checkpoint: a resumed run writes the row that the uninterrupted one would have.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0
        self.row: dict[str, float] = {}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._clock = _Clock(trainer.global_step)

    def on_train_batch_start(self, *_: Any) -> None:
        self._clock.batch_arrived()

    def on_micro_batch(self, trainer: L.Trainer, module: Stage, outputs: Any) -> None:
        for name, value in outputs["logged"].items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.micro_batches += 1
        self._clock.batch_done()

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        due = is_due(trainer, step, self.every)
        if not due and not module.step_metrics:
            return
        row: dict[str, float] = {"step": step, "samples_seen": step * module.global_batch_size}
        if due:
            means = torch.stack([total.float() / self.micro_batches for total in self.sums.values()])
            means = trainer.strategy.reduce(means, reduce_op="mean")
            assert isinstance(means, Tensor)
            row |= {f"train/{name}": value for name, value in zip(self.sums, means.tolist(), strict=True)}
            assert module.grad_norm is not None
            row |= {
                "lr": module.learning_rate(step - 1),
                "grad_norm": float(module.grad_norm),
                "ema_decay": module.ema.decay,
            }
            row |= self._clock.rates(step, module.global_batch_size, module.seconds_aside)
            self.sums, self.micro_batches, module.seconds_aside = {}, 0, 0.0
        self.row = row | module.step_metrics
        module.step_metrics = {}
        if trainer.is_global_zero:
            RunFolder(trainer.default_root_dir).append_metrics(self.row)
            for logger in trainer.loggers:
                logger.log_metrics(self.row, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "micro_batches": self.micro_batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.micro_batches = dict(state_dict["sums"]), state_dict["micro_batches"]


class _Clock:
    """Samples per second, and the share of the time that training waited for data."""

    def __init__(self, step: int) -> None:
        self.step, self.start, self.waited = step, time.perf_counter(), 0.0
        self.free_since = self.start

    def batch_arrived(self) -> None:
        self.waited += time.perf_counter() - self.free_since

    def batch_done(self) -> None:
        self.free_since = time.perf_counter()

    def rates(self, step: int, samples_per_step: int, seconds_aside: float) -> dict[str, float]:
        """Since the last call, less the time spent on validation and previews."""
        now = time.perf_counter()
        seconds = max(now - self.start - seconds_aside, 1e-9)
        rates = {
            "samples_per_second": (step - self.step) * samples_per_step / seconds,
            "data_wait": self.waited / seconds,
        }
        self.step, self.start, self.waited, self.free_since = step, now, 0.0, now
        return rates

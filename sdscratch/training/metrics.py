"""One row of numbers per interval: interval means of the losses, rates, and what other callbacks have measured."""

from __future__ import annotations

import math
import time
from typing import Any

import lightning as L

from sdscratch.console import warn
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised


class Metrics(StepCallback):
    """Writes metrics.csv and hands the same row to the loggers.

    Losses are means over the interval's steps, on which all ranks agree; those that were not finite are left out. The sums
    are part of the checkpoint: a resumed run writes the row that the uninterrupted one would have. A row that finds the
    disk full is written with a later one.
    Bad samples that others stood in for are named on the console, each once, and counted in `quarantined`, over the run.
    """

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.quarantined, self.named = 0, set[str]()
        self.unwritten: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, Stage)
        self._clock = _Clock(module, trainer.global_step)
        if trainer.is_global_zero:  # rows that a stopped run had written beyond the step that this one starts from
            RunFolder(trainer.default_root_dir).cut_metrics(trainer.global_step)

    def on_train_batch_start(self, *_: Any) -> None:
        self._clock.batch_arrived()

    def on_micro_batch(self, trainer: L.Trainer, module: Stage, outputs: Any, batch: Any) -> None:
        for key in sorted(set(batch["quarantined"]) - self.named):
            warn(f"{key} is a bad sample; another one took its place")
            self.named.add(key)
        self._clock.batch_done()

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if module.report.is_finite:
            for name, value in module.report.losses.items():
                self.sums[name] = self.sums.get(name, 0.0) + value
            self.steps += 1
        self.quarantined += module.report.quarantined
        due = self.is_due(trainer, step)
        if not due and not module.step_metrics:
            return
        row: dict[str, float] = {"step": step, "samples_seen": module.samples_seen(step)}
        if due:
            row |= {f"train/{name}": total / self.steps for name, total in self.sums.items()}
            if self.quarantined:
                row["quarantined"] = self.quarantined
            row |= {"lr": module.learning_rate(step - 1), "ema_decay": module.ema.decay}
            if math.isfinite(module.report.grad_norm):
                row["grad_norm"] = module.report.grad_norm
            row |= self._clock.rates(step)
            self.sums, self.steps = {}, 0
        row |= module.counts | module.step_metrics
        module.step_metrics = {}
        if trainer.is_global_zero:
            self.unwritten.append(row)
            with said_not_raised("metrics.csv waits"):
                while self.unwritten:
                    RunFolder(trainer.default_root_dir).append_metrics(self.unwritten[0])
                    del self.unwritten[0]
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step)

    def state_dict(self) -> dict[str, Any]:
        return {"sums": dict(self.sums), "steps": self.steps, "quarantined": self.quarantined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.steps = dict(state_dict["sums"]), state_dict["steps"]
        self.quarantined = state_dict["quarantined"]


class _Clock:
    """Samples per second, and the share of the time that training waited for data. Stands still while callbacks work."""

    def __init__(self, module: Stage, step: int) -> None:
        self.module, self.step, self.waited = module, step, 0.0
        self.start = self.free_since = self.now()

    def now(self) -> float:
        return time.perf_counter() - self.module.seconds_aside

    def batch_arrived(self) -> None:
        self.waited += self.now() - self.free_since

    def batch_done(self) -> None:
        self.free_since = self.now()

    def rates(self, step: int) -> dict[str, float]:
        """Since the last call."""
        now = self.now()
        seconds = max(now - self.start, 1e-9)
        rates = {
            "samples_per_second": (step - self.step) * self.module.global_batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        self.step, self.start, self.waited = step, now, 0.0
        return rates

"""One row of numbers per interval: interval means of the losses, rates, and what other callbacks have measured."""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from sdscratch.console import warn
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder
from sdscratch.training import ranks
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised
from sdscratch.training.throughput import Clock, device_name, flops_per_sample, memory_gb, peak_tflops


class Metrics(StepCallback):
    """Writes metrics.csv and hands the same row to the loggers.

    Losses are means over the interval's steps, on which all ranks agree; those that were not finite are left out. The sums
    are part of the checkpoint: a resumed run writes the row that the uninterrupted one would have. A row that finds the
    disk full is written with a later one.
    Bad samples that others stood in for are named on the console, each once, and counted in `quarantined`, over the run.

    peak_tflops: of one device, to relate its work to in the column `mfu`; None means what the table in throughput.py says of
    it. Where that is nothing, there is no such column.
    """

    def __init__(self, every: int, peak_tflops: float | None = None) -> None:
        super().__init__(every)
        if peak_tflops is not None and not peak_tflops > 0:
            raise ConfigError(f"callbacks.metrics.peak_tflops is {peak_tflops}: expected a number above 0, or null")
        self.peak_tflops = peak_tflops
        self.flops_per_sample: float | None = None
        self.sums: dict[str, float] = {}
        self.steps = 0
        self.quarantined, self.named = 0, set[str]()
        self.unwritten: list[dict[str, float]] = []

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        assert isinstance(module, Stage)
        self._clock = Clock(module, trainer.global_step)
        if self.peak_tflops is None:  # by one rank, for counting operations takes all of them
            name, precision = device_name(module.device), str(trainer.precision)
            self.peak_tflops = ranks.agreed(lambda: peak_tflops(name, precision))
        if trainer.is_global_zero:  # rows that a stopped run had written beyond the step that this one starts from
            RunFolder(trainer.default_root_dir).cut_metrics(trainer.global_step)

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        assert isinstance(module, Stage)
        self._clock.batch_arrived()
        if self.peak_tflops is not None and self.flops_per_sample is None:
            with module.aside():
                self.flops_per_sample = flops_per_sample(trainer, module, batch)

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
            row["memory_gb"] = memory_gb(module.device)
            if self.peak_tflops and self.flops_per_sample:
                work = row["samples_per_second"] * self.flops_per_sample / trainer.world_size
                row["mfu"] = work / (1e12 * self.peak_tflops)
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

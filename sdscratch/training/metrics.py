"""One row of numbers per interval: interval means of the losses, rates, and what other callbacks have measured."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor

from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised


class Metrics(StepCallback):
    """Writes metrics.csv and hands the same row to the loggers.

    Losses are means over all samples of the interval and all ranks, summed on the device so that no step waits for the
    host. The sums are part of the checkpoint: a resumed run writes the row that the uninterrupted one would have. A row
    that finds the disk full is written with a later one.
    Bad samples that others stood in for are named on the console, each once, and counted in `quarantined`, over the run.
    """

    def __init__(self, every: int) -> None:
        super().__init__(every)
        self.sums: dict[str, Tensor] = {}
        self.micro_batches = 0
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
        for name, value in outputs["logged"].items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.clone()
        self.micro_batches += 1
        self.quarantined += len(batch["quarantined"])
        for key in sorted(set(batch["quarantined"]) - self.named):
            print(f"warning: {key} is a bad sample; another one took its place", file=sys.stderr)
            self.named.add(key)
        self._clock.batch_done()

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        due = self.is_due(trainer, step)
        if not due and not module.step_metrics:
            return
        row: dict[str, float] = {"step": step, "samples_seen": module.samples_seen(step)}
        if due:
            means = [total.float() / self.micro_batches for total in self.sums.values()]
            counted = torch.stack([*means, means[0].new_tensor(self.quarantined)])
            reduced = trainer.strategy.reduce(counted, reduce_op="mean")
            assert isinstance(reduced, Tensor)
            *losses, quarantined = reduced.tolist()
            row |= {f"train/{name}": value for name, value in zip(self.sums, losses, strict=True)}
            if quarantined:
                row["quarantined"] = round(quarantined * trainer.world_size)
            assert module.grad_norm is not None
            row |= {
                "lr": module.learning_rate(step - 1),
                "grad_norm": float(module.grad_norm),
                "ema_decay": module.ema.decay,
            }
            row |= self._clock.rates(step)
            self.sums, self.micro_batches = {}, 0
        row |= module.step_metrics
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
        return {"sums": dict(self.sums), "micro_batches": self.micro_batches, "quarantined": self.quarantined}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.sums, self.micro_batches = dict(state_dict["sums"]), state_dict["micro_batches"]
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

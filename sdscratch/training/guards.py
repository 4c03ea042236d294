"""Bad numbers: which optimizer steps are not taken, and when the run had better go back."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np

from sdscratch.console import warn
from sdscratch.errors import ConfigError, check_whole
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage, StepReport
from sdscratch.training.step_callback import StepCallback, said_not_raised


@dataclass(frozen=True)
class Finding:
    """What is wrong with a step. limit: of the loss, above which it is a spike."""

    reason: Literal["loss", "gradient", "spike"]
    taken: bool
    limit: float | None = None


class Guard(StepCallback):
    """Lets no step with a non-finite loss or gradient be taken; the same decision on every rank, from agreed numbers.

    Such a step changes neither weights nor average. Its positions count as consumed; they are named, with the keys of
    their samples, on the console and in bad_steps.jsonl. After more than `in_a_row` of them the run goes back to its last
    good checkpoint and skips all positions from there to here; after more than `rewinds` of that it has diverged.

    A spike is a loss more than `spike_deviations` standard deviations above the mean of the last `spike_window` finite
    losses; nothing is one before there are as many. It is logged, and with skip_spikes not taken either.

    bad_since: the steps done when the present row of bad steps began. state_dict is part of the checkpoint.
    """

    def __init__(
        self,
        in_a_row: int = 5,
        rewinds: int = 3,
        spike_window: int = 128,
        spike_deviations: float = 6.0,
        skip_spikes: bool = False,
    ) -> None:
        super().__init__(every=1)
        check_whole("callbacks.guard.in_a_row", in_a_row)
        check_whole("callbacks.guard.rewinds", rewinds, 0)
        check_whole("callbacks.guard.spike_window", spike_window, 2)
        if not spike_deviations > 0:
            raise ConfigError(f"callbacks.guard.spike_deviations is {spike_deviations}: expected a number above 0")
        self.in_a_row, self.rewinds = in_a_row, rewinds
        self.spike_window, self.spike_deviations, self.skip_spikes = spike_window, spike_deviations, skip_spikes
        self.losses: list[float] = []
        self.bad_steps, self.spikes = 0, 0
        self.bad_since: int | None = None
        self.finding: Finding | None = None
        self.gave_up = False

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        assert isinstance(module, Stage)
        module.guard = self

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        self._give_up_after_too_many(trainer, trainer.global_step)  # it may have been stopped at the last of them

    @property
    def asks_for_finite_numbers_only(self) -> bool:
        """Whether it refuses a step for nothing else."""
        return not self.skip_spikes

    def allows(self, report: StepReport, step: int) -> bool:
        """Whether the optimizer may take the step that follows `step` steps."""
        self.finding = None
        if report.overflow:
            return False
        self.finding = self._look(report)
        if report.is_finite:
            self.losses = [*self.losses, report.loss][-self.spike_window :]
            self.bad_since = None
        else:
            self.bad_steps += 1
            self.bad_since = step if self.bad_since is None else self.bad_since
        if self.finding and self.finding.reason == "spike":
            self.spikes += 1
        return self.finding is None or self.finding.taken

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if self.bad_steps:
            module.counts["bad_steps"] = self.bad_steps
        if self.spikes:
            module.counts["spikes"] = self.spikes
        if self.finding and trainer.is_global_zero:
            self._record(trainer, module.report, self.finding, step)
        self._give_up_after_too_many(trainer, step)

    def _give_up_after_too_many(self, trainer: L.Trainer, step: int) -> None:
        if self.bad_since is not None and step - self.bad_since > self.in_a_row:
            self.gave_up = trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        names = ("losses", "bad_steps", "spikes", "bad_since")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)

    def _look(self, report: StepReport) -> Finding | None:
        if report.bad_ranks:
            return Finding("loss", taken=False)
        if not math.isfinite(report.grad_norm):
            return Finding("gradient", taken=False)
        if len(self.losses) == self.spike_window:
            limit = float(np.mean(self.losses) + self.spike_deviations * np.std(self.losses, ddof=1))
            if report.loss > limit:
                return Finding("spike", not self.skip_spikes, limit)
        return None

    def _record(self, trainer: L.Trainer, report: StepReport, finding: Finding, step: int) -> None:
        positions = trainer.datamodule.positions(step - 1)
        about = {
            "step": step,
            "reason": finding.reason,
            "taken": finding.taken,
            "loss": None if report.bad_ranks else report.loss,
            "limit": finding.limit,
            "ranks": list(report.bad_ranks),
            "positions": [positions.start, positions.stop],
            "keys": trainer.datamodule.keys(positions),
        }
        with said_not_raised("bad_steps.jsonl lacks a step"):
            RunFolder(trainer.default_root_dir).append_bad_step(about)
        what = {
            "loss": f"the loss is not finite on {_ranks(report.bad_ranks)}",
            "gradient": "the gradient is not finite",
            "spike": f"the loss of {report.loss:.4g} is far above the usual, {finding.limit:.4g} at most"
            if finding.limit is not None
            else "",
        }[finding.reason]
        done = "" if finding.taken else "; the step was not taken"
        warn(f"step {step}: {what}{done}. Its samples are in bad_steps.jsonl")


def _ranks(ranks: tuple[int, ...]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"

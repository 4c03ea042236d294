"""What the three stages share: a network, its average, its optimizer, and where their numbers go."""

from __future__ import annotations

import math
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdscratch.data.grid import CaptionedImages
from sdscratch.devices import send
from sdscratch.errors import ConfigError
from sdscratch.models.weights import misfits
from sdscratch.training import ranks
from sdscratch.training.ema import Average, Ema
from sdscratch.training.hearing import OnItsWay
from sdscratch.training.injection import disturb
from sdscratch.training.optim import can_skip, parameter_groups, skipping

if TYPE_CHECKING:
    from sdscratch.training.guards import Guard
    from sdscratch.training.preemption import StopSignals

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
LrSchedule = Callable[[int], float]
Augmentation = Callable[[Tensor, Tensor], Tensor]
"""Pictures (B, 3, H, W) in [-1, 1] and their positions (B,) -> pictures to train on instead."""


@dataclass(frozen=True)
class StepReport:
    """What all ranks know of the latest optimizer step, before it is taken.

    losses: means over ranks and micro-batches, by name; "loss" is the one that is minimised. bad_ranks: where that one is not
    finite. quarantined: bad samples that others stood in for. stop: number of the signal that asks the run to stop, or 0.
    overflow: the gradient is not finite, but may be so at a smaller scale, which 16-mixed precision looks for.
    """

    losses: Mapping[str, float] = field(default_factory=dict)
    bad_ranks: tuple[int, ...] = ()
    grad_norm: float = 0.0
    quarantined: int = 0
    stop: int = 0
    overflow: bool = False

    @property
    def loss(self) -> float:
        """The one that is minimised."""
        return self.losses["loss"]

    @property
    def is_finite(self) -> bool:
        """Of the loss on every rank, and of the gradient."""
        return not self.bad_ranks and math.isfinite(self.grad_norm)


class Stage(L.LightningModule, ABC):
    """Trains one network, and owns only that: its weights, their average and the optimizer.

    A stage says what the loss of a batch is (`losses`), how good a network is on the held-out set (`evaluate`), what it
    can show (`preview`) and what it leaves behind (`save`). Numbers for the metrics row of the current step are put into
    `step_metrics`; whoever writes the row empties it. `counts` are numbers for every later row, over the whole run.

    source_weights: of the data that are mixed, by name: each is measured apart, and counts so much in the loss over all.

    At each optimizer step all ranks agree on a `report`; `guard` decides by it whether the step is taken, and the first of
    the `stop_signals` of any rank ends training after it.

    channels_last: kernels and pictures lie in memory as tensor cores read them; the numbers are the same to rounding.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        global_batch_size: int = 1,
        channels_last: bool = False,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__()
        if max_grad_norm <= 0:  # a negative one would turn every gradient around
            raise ConfigError(f"stage.max_grad_norm is {max_grad_norm}: expected a number above 0")
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.network = network.to(memory_format=self.memory_format)  # type: ignore[call-overload]
        self.ema = Ema(network, ema_decay)
        self.further_averages: list[Average] = []  # updated with it; whoever adds one saves it
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        groups = [{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)]  # as many as parameter_groups makes
        defaults = optimizer(groups).defaults  # it refuses wrong settings here
        self.peak_lr, self.weight_decay = float(defaults["lr"]), defaults.get("weight_decay", 0.0)
        self.max_grad_norm, self.global_batch_size = max_grad_norm, global_batch_size
        self.augment = augment
        self.seconds_aside = 0.0  # spent on other things than training, such as validation
        self.step_metrics: dict[str, float] = {}
        self.counts: dict[str, float] = {}
        self.guard: Guard | None = None
        self.stop_signals: StopSignals | None = None
        self.source_weights: Mapping[str, float] = {}
        self.report = StepReport()
        self._micro_batches: list[dict[str, Tensor]] = []  # losses of those of the present step
        self._quarantined = 0
        self.val_loss: float | None = None  # at this step, if it was measured
        self.settings: dict[str, Any] = {}  # what it is trained with, for its checkpoints: see config/changes.py
        self.first_moments: dict[int, Any] | None = None  # of the optimizer, where they are another run's
        self.samples_offset = 0  # those of runs that this one goes on from, or of a batch size changed on the way

    # What a stage says of itself

    component: ClassVar[str]
    """Where its network is in a model folder."""

    objective_metric: ClassVar[str] = "val/loss"
    """The name of `validation_loss`, by which runs are compared."""

    @abstractmethod
    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch; "loss" is minimised, all are logged as means over the interval."""

    @abstractmethod
    def evaluate(self, network: Any, batches: Iterable[Any]) -> dict[str, float]:
        """Measures of `network` on the fixed held-out batches, unweighted, the same draws every time."""

    def validation_loss(self, measures: Mapping[str, float]) -> float:
        """Of what `evaluate` gave, the number that the best checkpoint is chosen by: the lowest wins."""
        return measures["val/loss"]

    @abstractmethod
    def preview(self, network: Any, batches: Iterable[Any]) -> CaptionedImages | None:
        """What `network` can do, on the first rank; None on the others. To be called on all, which may share the work.

        batches: the held-out ones, whole.
        """

    @abstractmethod
    def save(self, network: Any, folder: Path, batches: Iterable[Any], about: Mapping[str, Any]) -> None:
        """Write the model folder; `batches` are the held-out ones, `about` says where the weights come from."""

    # One optimizer step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        if self.augment is not None:
            batch = {**batch, "images": self.augment(batch["images"], batch["positions"])}
        losses = self.losses({name: self._laid_out(value) for name, value in batch.items()})
        if self.trainer.datamodule is not None:
            position = self.trainer.datamodule.positions(self.global_step).start
            losses["loss"] = disturb(losses["loss"], position // self.global_batch_size, self.global_rank)
        self._micro_batches.append({name: value.detach().float() for name, value in losses.items()})
        self._quarantined += len(batch["quarantined"])
        return {"loss": losses["loss"]}

    def constrain(self) -> None:
        """Bring the weights back to where they may be, after each step; most may be anywhere."""

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(parameter_groups(self.network, self.weight_decay))
        if self.first_moments is not None:
            moments = self._moments_laid_out(self.first_moments)
            optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        return optimizer

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step number `step` (from 0): the configured peak times the schedule."""
        return self.peak_lr * self.lr_schedule(step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Forward, backward, clip; agree; then step at the rate that this step should have, and average.

        The step counts as done when it is not taken, too: positions are a function of the number of steps.
        """
        optimizer_closure()
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            scaler.unscale_(optimizer.optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)
        is_bad, said = self._agree(grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        on_device = self.guard is not None and self.guard.asks_for_finite_numbers_only and can_skip(optimizer.optimizer)
        if on_device and scaler is None:  # which then need not wait until the host has heard and decided
            with skipping(optimizer.optimizer, where=is_bad):
                super().optimizer_step(epoch, batch_idx, optimizer, lambda: None)
        self.report = self._report(said.read(), scale=scaler.get_scale() if scaler is not None else 1.0)
        if self.report.stop:
            self.trainer.should_stop = True
        taken = self.guard.allows(self.report, self.global_step) if self.guard else not self.report.overflow
        if taken:
            if scaler is not None:
                scaler.step(optimizer.optimizer)
            elif not on_device:
                super().optimizer_step(epoch, batch_idx, optimizer, lambda: None)
            self.constrain()
            for average in (self.ema, *self.further_averages):
                average.update(self.network)
        if scaler is not None:
            scaler.update()

    def _agree(self, grad_norm: Tensor) -> tuple[Tensor, OnItsWay]:
        """One all-reduce, for all that ranks must agree on before an optimizer step.

        Gradients are the same on all ranks by now, so their norm needs no words. Gives 1 where a loss or the norm is not
        finite, else 0, on the device; and all that was said, for `_report`.
        """
        names = list(self._micro_batches[0])
        losses = [torch.stack([losses[name] for losses in self._micro_batches]).mean() for name in names]
        own = losses[names.index("loss")]
        bad = torch.zeros(self.trainer.world_size, device=own.device)
        bad[self.global_rank] = ~own.isfinite()
        number = self.stop_signals.number if self.stop_signals else 0
        counts = [float(count) for count in (self._quarantined, number == signal.SIGTERM, number == signal.SIGINT)]
        said = ranks.add_up(torch.cat([torch.stack(losses), send(torch.tensor(counts), own.device), bad]))
        is_bad = said[-len(bad) :].any() | ~grad_norm.isfinite()
        return is_bad.float(), OnItsWay(torch.cat([said, grad_norm.float()[None]]))

    def _report(self, said: list[float], scale: float) -> StepReport:
        names = list(self._micro_batches[0])
        *totals, norm = said
        quarantined, terminated, interrupted, *bad_ranks = totals[len(names) :]
        self._micro_batches, self._quarantined = [], 0
        return StepReport(
            losses={name: total / self.trainer.world_size for name, total in zip(names, totals, strict=False)},
            bad_ranks=tuple(rank for rank, is_bad in enumerate(bad_ranks) if is_bad),
            grad_norm=norm,
            quarantined=int(quarantined),
            stop=signal.SIGTERM if terminated else signal.SIGINT if interrupted else 0,
            overflow=scale > 1 and not any(bad_ranks) and not math.isfinite(norm),
        )

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What is done in here does not count as training time."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()  # steps still under way are no part of it
        start = time.perf_counter()
        yield
        self.seconds_aside += time.perf_counter() - start

    def add_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`, float64, on the CPU."""
        return ranks.add_up(values.to(self.device)).cpu() if ranks.together() else values

    def samples_seen(self, step: int) -> int:
        """Over the whole run, and those it counts on from, after `step` optimizer steps."""
        return self.samples_offset + step * self.global_batch_size

    # What travels with the run

    def on_fit_start(self) -> None:
        for average in (self.ema, *self.further_averages):
            average.network.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["samples_seen"] = self.samples_seen(self.global_step)
        checkpoint["settings"] = self.settings
        checkpoint["skipped"] = self.trainer.datamodule.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError, naming tensors, where the checkpoint is of another network than this one."""
        weights = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
        if found := misfits(weights, self.network.state_dict()):
            raise ConfigError("\n  ".join(["the run trained another network than the one configured:", *found]))
        self.samples_offset = checkpoint["samples_seen"] - checkpoint["global_step"] * self.global_batch_size
        self.ema.load_state_dict(checkpoint["ema"])
        self._count_micro_batches(checkpoint)
        checkpoint["optimizer_states"][0]["state"] = self._moments_laid_out(checkpoint["optimizer_states"][0]["state"])
        configured = self.configure_optimizers().param_groups
        for saved, group in zip(checkpoint["optimizer_states"][0]["param_groups"], configured, strict=True):
            saved |= {name: value for name, value in group.items() if name != "params"}  # decay, betas: the configured

    def _count_micro_batches(self, checkpoint: Mapping[str, Any]) -> None:
        """As many as these steps would have had: Lightning takes a step whenever their number is a multiple of so many."""
        micro_batches = checkpoint["global_step"] * self.trainer.accumulate_grad_batches
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        for counts in (progress["total"], progress["current"]):
            counts.update(dict.fromkeys(counts, micro_batches))

    def _moments_laid_out(self, state: Mapping[int, Mapping[str, Any]]) -> dict[int, dict[str, Any]]:
        """An optimizer's state in the weights' own layout, which fused optimizers rely on."""
        return {i: {name: self._laid_out(value) for name, value in of_one.items()} for i, of_one in state.items()}

    def _laid_out(self, value: Any) -> Any:
        is_picture = isinstance(value, Tensor) and value.ndim == 4
        return value.contiguous(memory_format=self.memory_format) if is_picture else value

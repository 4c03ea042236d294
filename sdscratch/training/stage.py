"""What the three stages share: a network, its average, its optimizer, and where their numbers go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from sdscratch.training.ema import Ema
from sdscratch.training.optim import parameter_groups

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
LrSchedule = Callable[[int], float]


class Stage(L.LightningModule):
    """Trains one network, and owns only that: its weights, their average and the optimizer.

    A stage says what the loss of a batch is (`losses`), how good a network is on the held-out set (`evaluate`), what it
    can show (`preview`) and what it leaves behind (`save`). Numbers for the metrics row of the current step are put into
    `step_metrics`; whoever writes the row empties it.
    """

    higher_is_better = False
    headline = "val/loss"  # the metric that chooses the best checkpoint

    def __init__(
        self,
        network: nn.Module,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        global_batch_size: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.ema = Ema(network, ema_decay)
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        self.max_grad_norm, self.global_batch_size = max_grad_norm, global_batch_size
        self.seconds_aside = 0.0  # spent on validation and previews since the last metrics row
        self.step_metrics: dict[str, float] = {}
        self.grad_norm: Tensor | None = None

    # What a stage says of itself

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch; "loss" is minimised, all are logged as means over the interval."""
        raise NotImplementedError

    def evaluate(self, network: Any, batches: Iterable[Any]) -> dict[str, float]:
        """Measures of `network` on the fixed held-out batches, unweighted, the same draws every time."""
        raise NotImplementedError

    def preview(self, network: Any, batches: Iterable[Any]) -> Image.Image:
        """A picture of what `network` can do."""
        raise NotImplementedError

    def save(self, network: Any, folder: Path, batches: Iterable[Any], about: Mapping[str, Any]) -> None:
        """Write the model folder; `batches` are the held-out ones, `about` says where the weights come from."""
        raise NotImplementedError

    # One optimizer step

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        losses = self.losses(batch)
        return {"loss": losses["loss"], "logged": {name: value.detach() for name, value in losses.items()}}

    def configure_optimizers(self) -> Optimizer:
        defaults = self.make_optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]).defaults
        self.peak_lr = float(defaults["lr"])
        return self.make_optimizer(parameter_groups(self.network, defaults["weight_decay"]))

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip by the global norm, and keep that norm. Here because Lightning refuses clipping with a fused optimizer."""
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step number `step` (from 0): the configured peak times the schedule."""
        return self.peak_lr * self.lr_schedule(step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Set the rate that this step should have, whatever a checkpoint brought along; then step, then average."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.ema.update(self.network)

    def add_over_ranks(self, values: Tensor) -> Tensor:
        """The sum of every rank's `values`, float64, on the CPU."""
        if self.trainer.world_size == 1:
            return values
        summed = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed.cpu()

    # The average travels with the run

    def on_fit_start(self) -> None:
        self.ema.network.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])

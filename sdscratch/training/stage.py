"""What the three stages share: a network, its average, its optimizer, and where their numbers go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from sdscratch.errors import ConfigError
from sdscratch.training.ema import Ema
from sdscratch.training.optim import parameter_groups
from sdscratch.training.weights import misfits

MakeOptimizer = Callable[[list[dict[str, Any]]], Optimizer]
LrSchedule = Callable[[int], float]


class Stage(L.LightningModule):
    """Trains one network, and owns only that: its weights, their average and the optimizer.

    A stage says what the loss of a batch is (`losses`), how good a network is on the held-out set (`evaluate`), what it
    can show (`preview`) and what it leaves behind (`save`). Numbers for the metrics row of the current step are put into
    `step_metrics`; whoever writes the row empties it.
    """

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
        if max_grad_norm <= 0:  # a negative one would turn every gradient around
            raise ConfigError(f"stage.max_grad_norm is {max_grad_norm}: expected a number above 0")
        self.network = network
        self.ema = Ema(network, ema_decay)
        self.make_optimizer, self.lr_schedule = optimizer, lr_schedule
        defaults = optimizer([{"params": [nn.Parameter(torch.zeros(1))]}]).defaults  # it refuses wrong settings here
        self.peak_lr, self.weight_decay = float(defaults["lr"]), defaults.get("weight_decay", 0.0)
        self.max_grad_norm, self.global_batch_size = max_grad_norm, global_batch_size
        self.seconds_aside = 0.0  # spent on other things than training, such as validation
        self.step_metrics: dict[str, float] = {}
        self.grad_norm: Tensor | None = None
        self.val_loss: float | None = None  # at this step, if it was measured
        self.settings: dict[
            str, Any
        ] = {}  # what it is trained with, kept in its checkpoints: see sdscratch.config.changes
        self.first_moments: dict[int, Any] | None = None  # of the optimizer, where they are another run's
        self.samples_offset = 0  # where the batch size has been changed on the way

    # What a stage says of itself

    component: ClassVar[str]
    """Where its network is in a model folder."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Scalars of one batch; "loss" is minimised, all are logged as means over the interval."""
        raise NotImplementedError

    def evaluate(self, network: Any, batches: Iterable[Any]) -> dict[str, float]:
        """Measures of `network` on the fixed held-out batches, unweighted, the same draws every time."""
        raise NotImplementedError

    def validation_loss(self, measures: Mapping[str, float]) -> float:
        """Of what `evaluate` gave, the number that the best checkpoint is chosen by: the lowest wins."""
        return measures["val/loss"]

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

    def constrain(self) -> None:
        """Bring the weights back to where they may be, after each step; most may be anywhere."""

    def configure_optimizers(self) -> Optimizer:
        optimizer = self.make_optimizer(parameter_groups(self.network, self.weight_decay))
        if self.first_moments is not None:
            optimizer.load_state_dict({**optimizer.state_dict(), "state": self.first_moments})
        return optimizer

    def configure_gradient_clipping(self, optimizer: Optimizer, *_: Any, **__: Any) -> None:
        """Clip by the global norm, and keep that norm. Here because Lightning refuses clipping with a fused optimizer."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)  # a fused optimizer would do so itself, but after the clipping
        self.grad_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.max_grad_norm)

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimizer step number `step` (from 0): the configured peak times the schedule."""
        return self.peak_lr * self.lr_schedule(step)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        """Set the rate that this step should have, whatever a checkpoint brought along; then step, then average."""
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(self.global_step)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.constrain()
        self.ema.update(self.network)

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
        if self.trainer.world_size == 1:
            return values
        summed = self.trainer.strategy.reduce(values.to(self.device), reduce_op="sum")
        assert isinstance(summed, Tensor)
        return summed.cpu()

    def samples_seen(self, step: int) -> int:
        """Over the whole run, after `step` optimizer steps."""
        return self.samples_offset + step * self.global_batch_size

    # What travels with the run

    def on_fit_start(self) -> None:
        self.ema.network.to(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()
        checkpoint["samples_seen"] = self.samples_seen(self.global_step)
        checkpoint["settings"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError, naming tensors, where the checkpoint is of another network than this one."""
        weights = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
        if found := misfits(weights, self.network):
            raise ConfigError("\n  ".join(["the run trained another network than the one configured:", *found]))
        self.samples_offset = checkpoint["samples_seen"] - checkpoint["global_step"] * self.global_batch_size
        self.ema.load_state_dict(checkpoint["ema"])
        configured = self.configure_optimizers().param_groups
        for saved, group in zip(checkpoint["optimizer_states"][0]["param_groups"], configured, strict=True):
            saved |= {name: value for name, value in group.items() if name != "params"}  # decay, betas: the configured

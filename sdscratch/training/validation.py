"""Measures the averaged network on the fixed held-out set, while training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch

from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback


def held_out(trainer: L.Trainer, module: Stage, whole: bool = False) -> Iterator[Any]:
    """The fixed validation batches of this rank, where the averaged network is: after fitting, the module is not.

    whole: those of all ranks, for what one rank does alone.
    """
    device = next(module.ema.network.parameters()).device
    for batch in trainer.datamodule.val_dataloader(whole):
        yield module.transfer_batch_to_device(batch, device, 0)


class Validation(StepCallback):
    """Every `every` steps and at the end: the stage's measures of the EMA network into the metrics row."""

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        module.val_loss = None  # that of an earlier step is not this one's
        if self.is_due(trainer, step):
            with module.aside(), torch.no_grad():
                measures = module.evaluate(module.ema.network, held_out(trainer, module))
            module.step_metrics |= measures
            loss = module.validation_loss(measures)
            module.val_loss = loss if math.isfinite(loss) else None

"""What the host hears from its device while that goes on working."""

from __future__ import annotations

import torch
from torch import Tensor


class OnItsWay:
    """Numbers that are sent to the host as soon as they are there; what the device is given later need not wait."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.to("cpu", non_blocking=values.is_cuda)  # into pinned memory
        self.arrived = torch.cuda.Event() if values.is_cuda else None
        if self.arrived is not None:
            self.arrived.record()

    def read(self) -> list[float]:
        """Waits for them, and for nothing that was asked for later."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values.tolist()

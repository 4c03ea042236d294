"""Averaged networks: networks of their own, updated once per optimizer step and evaluated directly, never swapped in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Average(ABC):
    """A moving average of a network's weights, in float32; its kinds differ in how fast they forget.

    Floating-point buffers are averaged like weights; others are copied.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = deepcopy(network).float().eval().requires_grad_(False)
        self.num_updates = 0
        self._pairs: list[tuple[Tensor, Tensor]] = []  # each averaged tensor with the one that it follows
        self._followed: nn.Module | None = None

    @property
    @abstractmethod
    def decay(self) -> float:
        """What the latest update has kept of the average before it; 0 before any."""

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move each averaged tensor by (1 - decay) of the way to the network's: one fused pass over all of them.

        From the first update on both networks stay where they are: to look for their tensors takes as long as several kernels.
        """
        self.num_updates += 1
        if self._followed is not network:
            self._followed, self._pairs = network, [*zip(_tensors(self.network), _tensors(network), strict=True)]
        floats = [(a, c) for a, c in self._pairs if a.is_floating_point()]
        targets = [c.to(a.dtype) for a, c in floats]
        torch._foreach_lerp_([a for a, _ in floats], targets, 1 - self.decay)
        for a, c in self._pairs:
            if not a.is_floating_point():
                a.copy_(c)

    def state_dict(self) -> dict[str, Any]:
        """Weights and counter, plain types only."""
        return {"weights": self.network.state_dict(), "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state` was saved; the decay stays the configured one. Raises on missing or unexpected keys."""
        self.network.load_state_dict(state["weights"], strict=True)
        self.num_updates = int(state["num_updates"])


class Ema(Average):
    """Exponential moving average.

    After n updates the next one uses decay min(d, (1 + n) / (10 + n)), so that the random initial weights leave the average
    within the first hundred steps, however large d is.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the EMA decay is {decay}, but must lie in [0, 1)")
        super().__init__(network)
        self.max_decay = decay

    @property
    def decay(self) -> float:
        return min(self.max_decay, self.num_updates / (9 + self.num_updates))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "max_decay": self.max_decay}


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]

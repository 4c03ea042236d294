"""The averaged network: a network of its own, updated once per optimizer step and evaluated directly, never swapped in."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn


class Ema:
    """Exponential moving average of a network's weights, in float32.

    After n updates the next one uses decay min(d, (1 + n) / (10 + n)), so that the random initial weights leave the average
    within the first hundred steps, however large d is. Floating-point buffers are averaged like weights; others are copied.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the EMA decay is {decay}, but must lie in [0, 1)")
        self.network = deepcopy(network).float().eval().requires_grad_(False)
        self.max_decay, self.num_updates = decay, 0

    @property
    def decay(self) -> float:
        """Of the latest update; 0 before any."""
        return min(self.max_decay, self.num_updates / (9 + self.num_updates))

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move each averaged tensor by (1 - decay) of the way to the network's: one fused pass over all of them."""
        self.num_updates += 1
        averaged, current = _tensors(self.network), _tensors(network)
        floats = [(a, c) for a, c in zip(averaged, current, strict=True) if a.is_floating_point()]
        targets = [c.to(a.dtype) for a, c in floats]
        torch._foreach_lerp_([a for a, _ in floats], targets, 1 - self.decay)
        for a, c in zip(averaged, current, strict=True):
            if not a.is_floating_point():
                a.copy_(c)

    def state_dict(self) -> dict[str, Any]:
        """Weights and counter, plain types only."""
        return {"weights": self.network.state_dict(), "num_updates": self.num_updates, "max_decay": self.max_decay}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state` was saved; the decay stays the configured one. Raises on missing or unexpected keys."""
        self.network.load_state_dict(state["weights"], strict=True)
        self.num_updates = int(state["num_updates"])


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]

"""The loss on held-out samples, overall and by noise level.

The same mean may hide a network that lost coarse structure and gained in detail. Of unweighted losses at fixed noise
and fixed timesteps, the numbers compare between steps and between runs.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor


class ValidationLoss:
    """Adds up per-sample losses over batches.

    totals: float64 (num_bins, 2), the sum and the number of losses in each bin. Ranks are combined by adding theirs.
    """

    def __init__(self, num_train_timesteps: int = 1000, num_bins: int = 4) -> None:
        self.num_train_timesteps = num_train_timesteps
        self.totals = torch.zeros(num_bins, 2, dtype=torch.float64)

    def add(self, losses: Tensor, timesteps: Tensor) -> None:
        """losses: (B,), unweighted. timesteps: (B,), integer or float, in [0, num_train_timesteps]."""
        num_bins = len(self.totals)
        bins = (timesteps.cpu().double() * num_bins / self.num_train_timesteps).long().clamp(max=num_bins - 1)
        losses = losses.detach().cpu().double()
        self.totals.index_add_(0, bins, torch.stack([losses, torch.ones_like(losses)], dim=1))

    def result(self) -> dict[str, float]:
        """{"loss": mean of all, "loss_t000_250": mean of a bin of timesteps, ...}; empty bins are left out."""
        edges = [i * self.num_train_timesteps // len(self.totals) for i in range(len(self.totals) + 1)]
        names = [f"loss_t{low:03d}_{high:03d}" for low, high in pairwise(edges)]
        rows = {"loss": self.totals.sum(dim=0), **dict(zip(names, self.totals, strict=True))}
        return {name: (total / count).item() for name, (total, count) in rows.items() if count > 0}

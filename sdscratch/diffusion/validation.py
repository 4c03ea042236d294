"""The loss on held-out samples, overall, by noise level and by source.

The same mean may hide a network that lost coarse structure and gained in detail, or one that learnt faces and forgot
landscapes. Of unweighted losses at fixed noise and fixed timesteps, the numbers compare between steps and between runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor


class ValidationLoss:
    """Adds up per-sample losses over batches.

    source_weights: of sources to be told apart, what the mean of each counts in the one over all, and in bins; 0: nothing.
        Without any, every sample counts alike.
    totals: float64 (sources, num_bins, 2), the sum and the number of losses of each source in each bin of noise levels.
        Ranks are combined by adding theirs.
    """

    def __init__(
        self, num_train_timesteps: int = 1000, num_bins: int = 4, source_weights: Mapping[str, float] | None = None
    ) -> None:
        self.num_train_timesteps, self.num_bins = num_train_timesteps, num_bins
        self.sources = list(source_weights or {})
        self.weights = torch.tensor(list((source_weights or {"": 1.0}).values()), dtype=torch.float64)
        self.totals = torch.zeros(len(self.weights), num_bins, 2, dtype=torch.float64)

    def add(self, losses: Tensor, timesteps: Tensor, sources: Sequence[str] = ()) -> None:
        """losses: (B,), unweighted. timesteps: (B,), integer or float, in [0, num_train_timesteps]. sources: B names."""
        bins = (timesteps.cpu().double() * self.num_bins / self.num_train_timesteps).long().clamp(max=self.num_bins - 1)
        if self.sources:
            bins += self.num_bins * torch.tensor([self.sources.index(source) for source in sources])
        losses = losses.detach().cpu().double()
        self.totals.view(-1, 2).index_add_(0, bins, torch.stack([losses, torch.ones_like(losses)], dim=1))

    def result(self) -> dict[str, float]:
        """{"loss": mean of all, "loss_t000_250": mean of a bin of timesteps, ..., "loss/NAME": of a source, ...}.

        Empty bins, and sources without a sample, are left out.
        """
        edges = [i * self.num_train_timesteps // self.num_bins for i in range(self.num_bins + 1)]
        names = [f"loss_t{low:03d}_{high:03d}" for low, high in pairwise(edges)]
        whole, each = self.totals.sum(dim=1), torch.eye(len(self.weights), dtype=torch.float64)  # (sources, 2)
        found = {"loss": _mean(whole, self.weights)}
        found |= {name: _mean(self.totals[:, i], self.weights) for i, name in enumerate(names)}
        found |= {f"loss/{name}": _mean(whole, weights) for name, weights in zip(self.sources, each, strict=False)}
        return {name: value for name, value in found.items() if value is not None}


def _mean(totals: Tensor, weights: Tensor) -> float | None:
    """Of the sources' means; None where no source that counts has a loss. totals: (sources, 2); weights: (sources,)."""
    counted = (totals[:, 1] > 0) & (weights > 0)
    if not counted.any():
        return None
    sums, counts = totals[counted].unbind(dim=1)
    return ((weights[counted] * sums / counts).sum() / weights[counted].sum()).item()

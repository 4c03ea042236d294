"""The loss on held-out samples, overall, by noise level and by source.

The same mean may hide a network that lost coarse structure and gained in detail, or one that learnt faces and forgot
landscapes. Of unweighted losses at fixed noise and fixed timesteps, the numbers compare between steps and between runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


class ValidationLoss:
    """Adds up per-sample losses over batches.

    sources: names of those to be told apart.
    totals: float64 (num_bins + sources, 2), the sum and the number of losses in each bin of noise levels, and of each
        source. Ranks are combined by adding theirs.
    """

    def __init__(self, num_train_timesteps: int = 1000, num_bins: int = 4, sources: Sequence[str] = ()) -> None:
        self.num_train_timesteps, self.num_bins, self.sources = num_train_timesteps, num_bins, tuple(sources)
        self.totals = torch.zeros(num_bins + len(self.sources), 2, dtype=torch.float64)

    def add(self, losses: Tensor, timesteps: Tensor, sources: Sequence[str] = ()) -> None:
        """losses: (B,), unweighted. timesteps: (B,), integer or float, in [0, num_train_timesteps]. sources: B names."""
        bins = (timesteps.cpu().double() * self.num_bins / self.num_train_timesteps).long().clamp(max=self.num_bins - 1)
        losses = losses.detach().cpu().double()
        rows = torch.stack([losses, torch.ones_like(losses)], dim=1)
        self.totals.index_add_(0, bins, rows)
        if self.sources:
            of_source = torch.tensor([self.num_bins + self.sources.index(source) for source in sources])
            self.totals.index_add_(0, of_source, rows)

    def result(self) -> dict[str, float]:
        """{"loss": mean of all, "loss_t000_250": mean of a bin of timesteps, ..., "loss/NAME": of a source, ...}.

        Empty bins, and sources without a sample, are left out.
        """
        edges = [i * self.num_train_timesteps // self.num_bins for i in range(self.num_bins + 1)]
        names = [f"loss_t{low:03d}_{high:03d}" for low, high in pairwise(edges)]
        names += [f"loss/{source}" for source in self.sources]
        rows = {"loss": self.totals[: self.num_bins].sum(dim=0), **dict(zip(names, self.totals, strict=True))}
        return {name: (total / count).item() for name, (total, count) in rows.items() if count > 0}

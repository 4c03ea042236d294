"""How far a set of drawn pictures is from a set of real ones, by their features (N, D)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance

from sdscratch.evaluation.bootstrap import Estimate, estimate

SUBSET = 1000  # pictures in one of KID's subsets
LEAST = 10  # pictures of which a distance says anything at all


class _Given(nn.Module):
    """Stands where torchmetrics expects the network: the features are there already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def fid(real: Tensor, drawn: Tensor) -> float:
    """Frechet distance between the Gaussians of two sets (Heusel et al. 2017). Biased upwards, the more the fewer there are."""
    metric = FrechetInceptionDistance(feature=_Given(real.shape[1])).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(drawn.double(), real=False)
    return float(metric.compute())


def fid_estimate(real: Tensor, drawn: Tensor, replicates: int, paired: bool = False) -> Estimate:
    """FID with its interval, which ends at 0 at the latest. paired: as in `estimate`."""
    return estimate(fid, real, drawn, replicates=replicates, paired=paired, within=(0.0, math.inf))


def kid(real: Tensor, drawn: Tensor) -> float:
    """Squared maximum mean discrepancy under a cubic kernel (Binkowski et al. 2018): for sets of one kind about 0, or below.

    Unbiased for sets that were drawn apart; pictures of the same captions pull it below 0 where they are few.

    Mean over subsets of SUBSET pictures, or of all where there are fewer.
    """
    size = min(SUBSET, len(real), len(drawn))
    with _repeatable():
        metric = KernelInceptionDistance(
            feature=_Given(real.shape[1]), subsets=max(1, len(drawn) // size), subset_size=size
        )
        metric.update(real.double(), real=True)
        metric.update(drawn.double(), real=False)
        return float(metric.compute()[0])


def inception_score(logits: Tensor) -> float:
    """exp of the mean KL from each picture's classes to those of all (Salimans et al. 2016), in one split; (N, classes)."""
    with _repeatable():
        metric = InceptionScore(feature=_Given(logits.shape[1]), splits=1)
        metric.update(logits.double())
        return float(metric.compute()[0])


def covered(points: Tensor, by: Tensor, neighbours: int = 3) -> Tensor:
    """Which points (N, D) lie within a ball of the set `by` (M, D), whose radii reach its k-th neighbours; (N,) of 0 and 1.

    Its mean is precision of (drawn, by=real), and recall of (real, by=drawn) (Kynkaanniemi et al. 2019).
    """
    by = by.double()
    radii = torch.cdist(by, by).kthvalue(neighbours + 1).values  # the nearest is the point itself
    return torch.cat([(torch.cdist(part.double(), by) <= radii).any(dim=1) for part in points.split(1024)]).double()


@contextmanager
def _repeatable() -> Iterator[None]:
    """torchmetrics shuffles by the global generator, warns of the memory that features take, and of one split's deviation."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield

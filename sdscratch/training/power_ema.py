"""Averages with a power-function profile, and how some of them, put together, make one of any other length.

Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3 and appendix C. After t
updates the weights of time tau count in proportion to tau^gamma. An average is named by its length sigma_rel, the standard
deviation of that profile as a share of t:

    sigma_rel = (gamma + 1)^(1/2) (gamma + 2)^(-1) (gamma + 3)^(-1/2)

It forgets as slowly as the run is old, and holds nothing of the first, random weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import nn

from sdscratch.errors import ConfigError
from sdscratch.training.ema import Average

SHORTEST, LONGEST = 1e-4, 0.28
"""As lengths: below, an average is the last weights and no more; at 0.2887 all weights since the start would count alike."""


def exponent(length: float) -> float:
    """The gamma of a length in [SHORTEST, LONGEST]: the largest root of (g + 2)^2 (g + 3) sigma_rel^2 = g + 1.

    Raises ConfigError.
    """
    if isinstance(length, bool) or not isinstance(length, int | float) or not SHORTEST <= length <= LONGEST:
        raise ConfigError(
            f"an average of length {length!r}: expected a number in [{SHORTEST}, {LONGEST}], the standard deviation of "
            "what it averages as a share of training"
        )
    inverse = length**-2.0
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class PowerEma(Average):
    """An average of a length. Its decay at update t is (1 - 1/t)^(gamma + 1): the first update takes all."""

    def __init__(self, network: nn.Module, length: float) -> None:
        super().__init__(network)
        self.exponent = exponent(length)

    @property
    def decay(self) -> float:
        return (1 - 1 / self.num_updates) ** (self.exponent + 1) if self.num_updates else 0.0


class Profile(NamedTuple):
    """How weights of a run count in an average of this length after so many updates."""

    length: float
    updates: int


def combination(profiles: Sequence[Profile], wanted: Profile) -> tuple[np.ndarray, float]:
    """The factors by which averages with these `profiles` come closest, added up, to the `wanted` one, and how close.

    Least squares over the profiles, with factors that add up to 1, so that weights that never changed come out as they are.
    Returns the factors, (len(profiles),) float64, and the distance of the profiles as a share of the wanted one's size.
    """
    exponents = np.array([exponent(profile.length) for profile in profiles])
    updates = np.array([profile.updates for profile in profiles], float)
    target, end = exponent(wanted.length), float(wanted.updates)
    products = _product(exponents[:, None], updates[:, None], exponents, updates)
    onto = _product(exponents, updates, target, end)
    sizes = np.sqrt(products.diagonal())  # profiles of one size make the equations less ill-conditioned
    system = np.block([[products / np.outer(sizes, sizes), 1 / sizes[:, None]], [1 / sizes, 0.0]])
    factors = np.linalg.lstsq(system, np.append(onto / sizes, 1.0), rcond=None)[0][:-1] / sizes
    size = float(_product(target, end, target, end))
    distance = factors @ products @ factors - 2 * factors @ onto + size
    return factors, float(np.sqrt(max(0.0, distance) / size))


def _product(
    gamma: np.ndarray | float, t: np.ndarray | float, gamma2: np.ndarray | float, t2: np.ndarray | float
) -> np.ndarray:
    """The integral over time of two profiles' product: each is (gamma + 1) tau^gamma / t^(gamma + 1) up to t, then 0."""
    common = np.minimum(t, t2)
    scale = (gamma + 1) * (gamma2 + 1) / (gamma + gamma2 + 1)
    return scale * (common / t) ** gamma * (common / t2) ** gamma2 * common / (t * t2)

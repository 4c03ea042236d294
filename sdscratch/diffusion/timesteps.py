"""Which timesteps: drawn from a distribution in training, spaced evenly in sampling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdscratch.errors import ConfigError, check_choice

TimestepDistribution = Callable[[Tensor], Tensor]
"""A quantile function: u in [0, 1), of any shape -> fraction of the way from clean (0) to noise (1), of that shape.

Uniformly drawn u give the distribution; evenly spaced ones, (i + 0.5) / n, cover it without chance.
"""

TIMESTEP_SPACINGS = ("leading", "trailing", "linspace")


@dataclass(frozen=True)
class Uniform:
    """All noise levels equally often."""

    def __call__(self, u: Tensor) -> Tensor:
        return u


@dataclass(frozen=True)
class LogitNormal:
    """The middle more often than the ends: fraction = sigmoid(mean + std * z), z standard normal.

    Esser et al. 2024, section 3.1. A higher `mean` moves training towards noise, a higher `std` towards both ends.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ConfigError(f"timestep_distribution.std is {self.std}; expected a positive number.")

    def __call__(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


def spaced_timesteps(spacing: str, num_inference_steps: int, num_train_timesteps: int, steps_offset: int = 0) -> Tensor:
    """Falling int64 timesteps (num_inference_steps,), as diffusers' DDIM and DDPM schedulers space them.

    Lin et al. 2024, table 2: `leading` never reaches the noisiest timestep (SD 1.x uses it with steps_offset 1),
    `trailing` starts there, `linspace` has both ends. Only `leading` reads steps_offset.
    Raises ConfigError for more steps than timesteps, or for an offset that leaves the schedule.
    """
    check_choice("timestep_spacing", spacing, TIMESTEP_SPACINGS)
    if not 1 <= num_inference_steps <= num_train_timesteps:
        raise ConfigError(
            f"num_inference_steps is {num_inference_steps}, but the noise schedule has {num_train_timesteps}; "
            f"expected 1 to {num_train_timesteps}."
        )
    timesteps: np.ndarray
    if spacing == "leading":
        stride = num_train_timesteps // num_inference_steps
        timesteps = np.arange(num_inference_steps)[::-1] * stride + steps_offset
    elif spacing == "trailing":
        step = num_train_timesteps / num_inference_steps
        timesteps = np.arange(num_train_timesteps, 0, -step)[:num_inference_steps].round() - 1
    else:
        timesteps = np.linspace(0, num_train_timesteps - 1, num_inference_steps).round()[::-1]
    if timesteps[-1] < 0 or timesteps[0] >= num_train_timesteps:
        raise ConfigError(
            f"{num_inference_steps} steps with steps_offset {steps_offset} visit timesteps {timesteps[0]} to "
            f"{timesteps[-1]}, expected {num_train_timesteps - 1} to 0 at most; use timestep_spacing=trailing."
        )
    return torch.from_numpy(timesteps.astype(np.int64))

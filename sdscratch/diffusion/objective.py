"""What the network is asked, and how wrong it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from sdscratch.diffusion.noise_schedule import FlowSchedule, NoiseSchedule
from sdscratch.diffusion.prediction import PredictionType, min_snr_weights, mix, target
from sdscratch.diffusion.timesteps import LogitNormal, TimestepDistribution, Uniform
from sdscratch.errors import ConfigError

Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(noisy latents (B, C, h, w), timesteps (B,), encoder_hidden_states (B, L, D)) -> prediction (B, C, h, w)."""


MOST_AMPLIFIED = 100.0
"""How many times as large as what is left an error in epsilon may become in the first step of sampling: beyond this, a percent
of error outweighs all else."""


class Losses(NamedTuple):
    """What a batch costs, sample by sample, in float32."""

    unweighted: Tensor  # (B,): mean squared error; comparable between runs whatever their weights
    weights: Tensor  # (B,)

    @property
    def weighted(self) -> Tensor:
        """(B,): what training minimises."""
        return self.unweighted * self.weights


class Objective:
    """Teaches a network to tell latents from noise; see the two kinds below for what they add.

    min_snr_gamma: weight losses by min(SNR, gamma) on the clean latents (Hang et al. 2023; 5 is usual), or None for
    weights of one. timestep_distribution: how often training visits each noise level.
    """

    noise_schedule: NoiseSchedule | FlowSchedule
    prediction_type: PredictionType
    min_snr_gamma: float | None
    timestep_distribution: TimestepDistribution

    def __post_init__(self) -> None:
        self.noise_schedule.check_prediction_type(self.prediction_type)
        if self.min_snr_gamma is not None and self.min_snr_gamma <= 0:
            raise ConfigError(f"min_snr_gamma is {self.min_snr_gamma}; expected a positive number, or null for none.")

    @property
    def num_train_timesteps(self) -> int:
        """Timesteps lie between 0 and this."""
        return self.noise_schedule.num_train_timesteps

    def timesteps(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in [0, 1) -> timesteps (B,): int64 in discrete schedules, float32 in flow matching."""
        return self.noise_schedule.timesteps_at(self.timestep_distribution(u))

    def add_noise(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network sees: noisy latents (B, C, h, w)."""
        return mix(latents, noise, self.noise_schedule.scales(timesteps))

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should answer, (B, C, h, w)."""
        return target(self.prediction_type, latents, noise, self.noise_schedule.scales(timesteps))

    def weights(self, timesteps: Tensor) -> Tensor:
        """How much each loss counts, float32 (B,), finite and not negative at every timestep."""
        if self.min_snr_gamma is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        return min_snr_weights(self.prediction_type, self.noise_schedule.scales(timesteps), self.min_snr_gamma)

    def doubt(self, num_inference_steps: int) -> str:
        """Why a network that learns this would be sampled badly in so many steps, in a line; empty where it would not.

        A step from sigma to sigma' turns an error in epsilon into one of (sigma - sigma') in latents and noise of the size
        hypot(1, sigma'). The cosine ends in such a step; those of Stable Diffusion and DDPM do not.
        """
        first, second = self.noise_schedule.grid(num_inference_steps).sigmas[:2].tolist()
        amplified = (first - second) / math.hypot(1, second)
        if self.prediction_type != "epsilon" or amplified <= MOST_AMPLIFIED:
            return ""
        return (
            f"the first of {num_inference_steps} sampling steps goes from sigma {first:,.0f} (alphas_cumprod "
            f"{1 / (1 + first**2):.1e}) to {second:.1f}: an error of 1 % in epsilon becomes {amplified / 100:.0f} times as "
            "large as what is left there. Take objective=v_prediction, or objective.noise_schedule.timestep_spacing=leading"
        )

    def __call__(
        self, network: Network, latents: Tensor, noise: Tensor, timesteps: Tensor, encoder_hidden_states: Tensor
    ) -> Losses:
        """Ask the network once. latents, noise: (B, C, h, w), latents of about unit variance; timesteps (B,)."""
        output = network(self.add_noise(latents, noise, timesteps), timesteps, encoder_hidden_states)
        errors = output.float() - self.target(latents, noise, timesteps)  # half precision would lose small ones
        squares = errors.square().sum(
            (1, 2, 3)
        )  # whose gradient keeps the layout of the output, as that of a mean does not
        return Losses(squares / errors[0].numel(), self.weights(timesteps))


@dataclass(frozen=True)
class DiffusionObjective(Objective):
    """Denoising on a discrete schedule, prediction_type `epsilon` (Stable Diffusion 1.x) or `v_prediction`.

    Raises ConfigError for epsilon with zero terminal SNR, which cannot be learned.
    """

    noise_schedule: NoiseSchedule
    prediction_type: PredictionType = "epsilon"
    min_snr_gamma: float | None = None
    timestep_distribution: TimestepDistribution = Uniform()


@dataclass(frozen=True)
class FlowMatching(Objective):
    """The slope of the straight path from latents to noise, noise - latents, at continuous times."""

    min_snr_gamma: float | None = None
    timestep_distribution: TimestepDistribution = LogitNormal()
    noise_schedule: FlowSchedule = FlowSchedule()
    prediction_type: PredictionType = field(default="flow_prediction", init=False)

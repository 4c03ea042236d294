"""How noise grows with time: Stable Diffusion's discrete schedules, and the straight path of flow matching.

Both answer the same questions: which timesteps lie at a fraction of the way to noise, how much signal and noise there
is at a timestep or at a Karras sigma, and which timesteps and sigmas a sampler visits.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sdscratch.diffusion.prediction import PREDICTION_TYPES, Scales
from sdscratch.diffusion.timesteps import TIMESTEP_SPACINGS, spaced_timesteps
from sdscratch.errors import ConfigError, check_choice, check_whole

LARGEST_SIGMA = 1e8
"""Stands for the infinite sigma of pure noise: in float32, latents + 1e8 * noise is 1e8 * noise."""

LEAST_SIGNAL = 2.0**-24
"""The share of latents in a noisy mix below which float32 rounds them away: what is left is the noise alone."""

KINDS = ("scaled_linear", "linear", "cosine")


class Grid(NamedTuple):
    """Where a sampler goes. One array gives both the times told to the network and the step sizes."""

    timesteps: Tensor  # int64 (num_inference_steps,), falling: what the network is told
    sigmas: Tensor  # float64 (num_inference_steps + 1,), falling to 0: Karras' sigma there


@dataclass(frozen=True)
class NoiseSchedule:
    """Discrete steps: noisy = sqrt(alphas_cumprod) * latents + sqrt(1 - alphas_cumprod) * noise, preserving variance.

    kind: how betas run from beta_start to beta_end, `linear` (Ho et al. 2020) or `scaled_linear` (linear in their
    roots; Stable Diffusion). Or `cosine` (Nichol and Dhariwal 2021; diffusers' squaredcos_cap_v2), which reads neither.
    rescale_zero_terminal_snr: shift the schedule so that the last timestep is pure noise (Lin et al. 2024).
    timestep_spacing, steps_offset: how samplers walk through it; see `spaced_timesteps`.
    Raises ConfigError for an unknown name or betas that are no schedule.
    """

    kind: str = "scaled_linear"
    num_train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    rescale_zero_terminal_snr: bool = False
    timestep_spacing: str = "trailing"
    steps_offset: int = 0

    def __post_init__(self) -> None:
        check_choice("noise_schedule.kind", self.kind, KINDS)
        check_choice("noise_schedule.timestep_spacing", self.timestep_spacing, TIMESTEP_SPACINGS)
        if self.num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps is {self.num_train_timesteps}; expected at least 2.")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"beta_start={self.beta_start} and beta_end={self.beta_end} make no schedule; "
                "expected 0 < beta_start <= beta_end < 1."
            )

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """The share of variance that is signal, float64 (num_train_timesteps,), falling; to 0 if rescaled.

        The product itself is taken in float32, as diffusers does. Its rounding shows in 1 - alphas_cumprod near the
        clean end, and whoever samples a model should do so at the noise levels it was trained on.
        """
        alphas = 1 - self._betas()
        if self.rescale_zero_terminal_snr:
            alphas = _without_terminal_signal(alphas)
        return torch.cumprod(alphas, dim=0).double()

    @cached_property
    def sigmas(self) -> Tensor:
        """Karras' sigma, sqrt((1 - alphas_cumprod) / alphas_cumprod), float64 (num_train_timesteps,), at most 1e8."""
        return ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt().clamp(max=LARGEST_SIGMA)

    def timesteps_at(self, fraction: Tensor) -> Tensor:
        """Fractions in [0, 1] of the way to noise -> int64 timesteps, each standing for an equal share."""
        return (fraction * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1)

    def scales(self, timesteps: Tensor) -> Scales[Tensor]:
        """Integer timesteps (B,) -> float32 scales (B,), on the device of the timesteps."""
        signal, noise_level = _scales_of_all_timesteps(self, timesteps.device)
        return Scales(signal[timesteps], noise_level[timesteps])

    def scales_at(self, sigma: float) -> Scales[float]:
        """Karras' sigma -> scales with signal^2 + noise_level^2 = 1."""
        signal = 1 / math.hypot(1, sigma)
        return Scales(signal, sigma * signal)

    def grid(self, num_inference_steps: int) -> Grid:
        """What a sampler of so many steps visits. Raises ConfigError when the schedule has fewer timesteps."""
        timesteps = spaced_timesteps(
            self.timestep_spacing, num_inference_steps, self.num_train_timesteps, self.steps_offset
        )
        return Grid(timesteps, torch.cat([self.sigmas[timesteps], torch.zeros(1, dtype=torch.float64)]))

    def check_prediction_type(self, prediction_type: str) -> None:
        """Raise ConfigError for a prediction type that this schedule cannot be trained with."""
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        if prediction_type == "flow_prediction":
            raise ConfigError("prediction_type=flow_prediction has its own schedule; use objective=flow_matching.")
        if prediction_type == "epsilon" and float(self.alphas_cumprod[-1]) < LEAST_SIGNAL**2:
            remedy = "rescale_zero_terminal_snr=false" if self.rescale_zero_terminal_snr else "a lower beta_end"
            raise ConfigError(
                "prediction_type=epsilon cannot work with zero terminal SNR: the last timestep is pure noise, and "
                f"naming it says nothing about the latents. Use v_prediction, or {remedy}."
            )

    def _betas(self) -> Tensor:
        """The share of variance that each timestep replaces by noise, float32 (num_train_timesteps,)."""
        steps = self.num_train_timesteps
        if self.kind == "linear":
            return torch.linspace(self.beta_start, self.beta_end, steps)
        if self.kind == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, steps).square()
        time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        signal = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        return (1 - signal[1:] / signal[:-1]).clamp(max=0.999).float()


@dataclass(frozen=True)
class FlowSchedule:
    """The straight path of flow matching: noisy = (1 - s) * latents + s * noise, timestep = num_train_timesteps * s.

    Lipman et al. 2023, in diffusers' direction: s in [0, 1] grows with noise. Karras' sigma is s / (1 - s).
    """

    num_train_timesteps: int = 1000

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 2:
            raise ConfigError(f"num_train_timesteps is {self.num_train_timesteps}; expected at least 2.")

    def timesteps_at(self, fraction: Tensor) -> Tensor:
        """Fractions s in [0, 1] -> float32 timesteps: time is continuous here."""
        return (fraction * self.num_train_timesteps).float()

    def scales(self, timesteps: Tensor) -> Scales[Tensor]:
        """Timesteps (B,) in [0, num_train_timesteps] -> float32 scales (B,), on their device."""
        s = timesteps.float() / self.num_train_timesteps
        return Scales(1 - s, s)

    def scales_at(self, sigma: float) -> Scales[float]:
        """Karras' sigma -> scales with signal + noise_level = 1."""
        return Scales(1 / (1 + sigma), sigma / (1 + sigma))

    def grid(self, num_inference_steps: int) -> Grid:
        """What a sampler of so many steps visits: s from 1 - 1 / num_train_timesteps to 0 in equal steps.

        Raises ConfigError for more steps than there are whole timesteps.

        The network is told whole timesteps, rounded down. All this is as in diffusers' DPMSolverMultistepScheduler with
        use_flow_sigmas, operation for operation, because rounding down forgives no last bit.
        """
        check_whole("num_inference_steps", num_inference_steps, 1, self.num_train_timesteps)
        s = (1 - np.linspace(1, 1 / self.num_train_timesteps, num_inference_steps + 1))[::-1].copy()
        timesteps = (s[:-1] * self.num_train_timesteps).astype(np.int64)
        return Grid(torch.from_numpy(timesteps), torch.from_numpy(s / (1 - s)))

    def check_prediction_type(self, prediction_type: str) -> None:
        """Raise ConfigError unless this is flow_prediction."""
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        if prediction_type != "flow_prediction":
            raise ConfigError(f"prediction_type={prediction_type} does not fit flow matching; use flow_prediction.")


def _without_terminal_signal(alphas: Tensor) -> Tensor:
    """Shift and stretch the roots of alphas_cumprod: the last becomes 0, the first stays (Lin et al. 2024, alg. 1)."""
    roots = alphas.cumprod(dim=0).sqrt()
    alphas_cumprod = ((roots - roots[-1]) * (roots[0] / (roots[0] - roots[-1]))).square()
    return torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])


@lru_cache(maxsize=16)
def _scales_of_all_timesteps(schedule: NoiseSchedule, device: torch.device) -> Scales[Tensor]:
    """Float32 tables (num_train_timesteps,), copied to a device once instead of at every training step."""
    signal, noise_level = schedule.alphas_cumprod.sqrt(), (1 - schedule.alphas_cumprod).sqrt()
    return Scales(signal.float().to(device), noise_level.float().to(device))

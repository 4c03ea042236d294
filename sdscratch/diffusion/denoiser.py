"""Network + noise schedule + prediction type -> denoise(latents, sigma).

The one place where sampling meets timesteps, input scaling and prediction types. Samplers see none of them: they
integrate in Karras' sigma, where noisy latents are latents + sigma * noise whatever the network was trained on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdscratch.diffusion.noise_schedule import FlowSchedule, NoiseSchedule
from sdscratch.diffusion.prediction import PredictionType, denoised


class Denoiser:
    """Estimates clean latents, at the sigmas that a sampler of `num_inference_steps` visits.

    network: (noisy latents (B, C, h, w), int64 timesteps (B,)) -> prediction (B, C, h, w), its text already bound;
    see `guided`. Raises ConfigError when prediction type and schedule do not fit, or for an impossible number of steps.

    timesteps: int64 (num_inference_steps,), what the network is told. sigmas: float64 (num_inference_steps + 1,),
    falling to 0, on the CPU; give them to the sampler.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        noise_schedule: NoiseSchedule | FlowSchedule,
        prediction_type: PredictionType,
        num_inference_steps: int,
    ) -> None:
        noise_schedule.check_prediction_type(prediction_type)
        self.network = network
        self.noise_schedule = noise_schedule
        self.prediction_type = prediction_type
        self.timesteps, self.sigmas = noise_schedule.grid(num_inference_steps)
        self._timestep_at = dict(zip(self.sigmas[:-1].tolist(), self.timesteps.tolist(), strict=True))

    def initial(self, noise: Tensor) -> Tensor:
        """Unit noise (B, C, h, w) -> what the sampler starts from: the network's first input will be that noise."""
        return noise / self.noise_schedule.scales_at(self.sigmas[0].item()).signal

    def part_way(self, latents: Tensor, noise: Tensor, steps_left_out: int) -> tuple[Tensor, Tensor]:
        """Clean latents and unit noise (B, C, h, w) -> what the sampler starts from after so many steps, and its sigmas."""
        sigmas = self.sigmas[steps_left_out:]
        return latents + sigmas[0].item() * noise, sigmas

    def __call__(self, latents: Tensor, sigma: float) -> Tensor:
        """latents (B, C, h, w), clean + sigma * noise, in float32 or wider; sigma, one of `sigmas` -> clean latents."""
        scales = self.noise_schedule.scales_at(sigma)
        noisy_latents = scales.signal * latents
        timesteps = torch.full((len(latents),), self._timestep_at[sigma], device=latents.device)
        output = self.network(noisy_latents, timesteps).to(latents.dtype)
        return denoised(self.prediction_type, output, noisy_latents, scales)

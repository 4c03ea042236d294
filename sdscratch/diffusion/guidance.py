"""Classifier-free guidance: away from what the network says without the prompt (Ho and Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdscratch.diffusion.objective import Network


def guided(
    network: Network,
    cond_states: Tensor,
    uncond_states: Tensor | None,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a network to its text: (noisy latents (B, C, h, w), timesteps (B,)) -> prediction (B, C, h, w).

    cond_states, uncond_states: (B, L, D), the prompts and the negative prompts. Both go through the network as one
    batch, [uncond; cond], and give uncond + guidance_scale * (cond - uncond). guidance_scale 1 asks for cond alone, at
    half the cost; uncond_states may then be None. guidance_rescale in [0, 1] draws each sample's standard deviation
    back to that of cond, against overexposure (Lin et al. 2024, section 3.4). As in diffusers' StableDiffusionPipeline.
    """
    if guidance_scale == 1:
        return lambda latents, timesteps: network(latents, timesteps, cond_states)
    assert uncond_states is not None, "guidance needs the states of the negative prompt, or of the empty one"
    states = torch.cat([uncond_states, cond_states])

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        output = network(torch.cat([latents] * 2), torch.cat([timesteps] * 2), states)
        uncond, cond = output.to(latents.dtype).chunk(2)  # a large scale would multiply half precision's rounding
        prediction = uncond + guidance_scale * (cond - uncond)
        if guidance_rescale == 0:
            return prediction
        return torch.lerp(prediction, prediction * (_std(cond) / _std(prediction)), guidance_rescale)

    return predict


def _std(values: Tensor) -> Tensor:
    """Of each sample, (B, 1, ..., 1)."""
    return values.std(dim=tuple(range(1, values.ndim)), keepdim=True)

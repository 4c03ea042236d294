"""Classifier-free guidance: away from what the network says without the prompt (Ho and Salimans 2022)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sdscratch.diffusion.objective import Network
from sdscratch.diffusion.samplers import Denoise


def guided(
    network: Network,
    cond_states: Tensor,
    uncond_states: Tensor | None,
    guidance_scale: float,
    guidance_rescale: float = 0.0,
    read: Callable[[Tensor], Any] = lambda states: states,
) -> Callable[[Tensor, Tensor], Tensor]:
    """Bind a network to its text: (noisy latents (B, C, h, w), timesteps (B,)) -> prediction (B, C, h, w).

    network: answers each of 2 B texts, [those of all pictures; others of all pictures], about the B latents given with them.
    cond_states, uncond_states: (B, L, D), the prompts and the negative prompts. Both go through the network together,
    [uncond; cond], and give uncond + guidance_scale * (cond - uncond). guidance_scale 1 asks for cond alone, at
    half the cost; uncond_states may then be None. guidance_rescale in [0, 1] draws each sample's standard deviation
    back to that of cond, against overexposure (Lin et al. 2024, section 3.4). As in diffusers' StableDiffusionPipeline.
    The network is given the latents in the dtype of the states, which is its own; all else is done in that of the latents.
    read: makes of the states, once for all steps, what the network is given in their place.
    """
    if guidance_scale == 1:
        text = cache(lambda: read(cond_states))  # when it is asked for, which may be never
        return lambda latents, timesteps: network(latents.to(cond_states.dtype), timesteps, text())
    assert uncond_states is not None, "guidance needs the states of the negative prompt, or of the empty one"
    states = torch.cat([uncond_states, cond_states])
    text = cache(lambda: read(states))

    def predict(latents: Tensor, timesteps: Tensor) -> Tensor:
        output = network(latents.to(states.dtype), timesteps, text())
        uncond, cond = output.to(latents.dtype).chunk(2)  # a large scale would multiply half precision's rounding
        prediction = uncond + guidance_scale * (cond - uncond)
        if guidance_rescale == 0:
            return prediction
        return torch.lerp(prediction, prediction * (_std(cond) / _std(prediction)), guidance_rescale)

    return predict


def guided_within(interval: Sequence[float], guided: Denoise, unguided: Denoise) -> Denoise:
    """Guide at noise levels (low, high] of Karras' sigma only (Kynkäänniemi et al. 2024, eq. 5).

    Guidance does harm where there is nearly nothing but noise, and nothing where there is nearly none. Outside, the network
    is asked for the prompt alone, at half the cost.
    """
    low, high = interval
    return lambda latents, sigma: (guided if low < sigma <= high else unguided)(latents, sigma)


def _std(values: Tensor) -> Tensor:
    """Of each sample, (B, 1, ..., 1)."""
    return values.std(dim=tuple(range(1, values.ndim)), keepdim=True)

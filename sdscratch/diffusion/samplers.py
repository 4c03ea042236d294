"""From noise to latents: generators over sigmas.

All take a `denoise(latents, sigma) -> clean latents`, latents (B, C, h, w) of clean + sigmas[0] * noise, and sigmas
(num_inference_steps + 1,), falling to 0. They yield the latents after each step, for progress bars and previews; the
last ones are clean. With a Denoiser d: `*_, latents = euler(d, d.initial(noise), d.sigmas)`.

A step to sigma_next keeps the fraction sigma_next / sigma of the way from the clean latents to the noisy ones. Written
as that interpolation, not as slope times difference, it stays accurate when sigma is huge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from sdscratch.errors import check_choice

Denoise = Callable[[Tensor, float], Tensor]
Draw = Callable[[int], Tensor]
"""Step index -> standard normal noise (B, C, h, w). What else it depends on, say a seed per sample, is up to you."""


class Sampler(Protocol):
    """How every sampler is called. Deterministic ones have no use for `draw`."""

    def __call__(
        self, denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None
    ) -> Iterator[Tensor]: ...


def euler(denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None) -> Iterator[Tensor]:
    """Follow the probability-flow ODE with first-order steps: DDIM with eta 0, and flow matching's Euler."""
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        latents = torch.lerp(denoise(latents, sigma), latents, sigma_next / sigma)
        yield latents


def heun(denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None) -> Iterator[Tensor]:
    """Second-order steps at two calls each (Karras et al. 2022, alg. 1, without churn); the last, to 0, is Euler's.

    The trapezoid rule is taken in s = sigma / (1 + sigma), flow matching's time, not in sigma. The solution is the
    same, but from pure noise, where sigma is huge, a step in s is of ordinary size.
    """
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        clean = denoise(latents, sigma)
        latents = torch.lerp(clean, latents, sigma_next / sigma)
        if sigma_next > 0:
            half_step = (sigma - sigma_next) / (2 * sigma_next) * (1 + sigma_next) / (1 + sigma)
            latents = latents + half_step * (denoise(latents, sigma_next) - clean)
        yield latents


def dpmpp_2m(denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None) -> Iterator[Tensor]:
    """Second order at one call per step, by remembering the last one: DPM-Solver++(2M) (Lu et al. 2022, alg. 2).

    The clean latents are extrapolated in log sigma to the middle of the step. The first step and the last are Euler's.
    """
    sigma_before, clean_before = math.inf, None
    for sigma, sigma_next in pairwise(sigmas.tolist()):
        clean = middle = denoise(latents, sigma)
        if clean_before is not None and sigma_next > 0:
            ahead = math.log(sigma / sigma_next) / (2 * math.log(sigma_before / sigma))
            middle = clean + ahead * (clean - clean_before)
        latents = torch.lerp(middle, latents, sigma_next / sigma)
        sigma_before, clean_before = sigma, clean
        yield latents


def ddim(
    denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None, eta: float = 0.0
) -> Iterator[Tensor]:
    """Replace part of the noise by fresh noise in each step (Song et al. 2021, eq. 12 and 16); eta 0 replaces none.

    Of the variance sigma_next^2 that should remain, the share eta^2 * (1 - (sigma_next / sigma)^2) is fresh: the
    paper's, in Karras' sigma. eta in [0, 1]; above 0, `draw` is called once per step, but for the last.
    """
    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas.tolist())):
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        kept = math.sqrt(sigma_next**2 - fresh**2)
        latents = torch.lerp(denoise(latents, sigma), latents, kept / sigma)
        if fresh > 0:
            assert draw is not None, "eta above 0 needs noise"
            latents = latents + fresh * draw(step).to(latents)
        yield latents


def ddpm(denoise: Denoise, latents: Tensor, sigmas: Tensor, draw: Draw | None = None) -> Iterator[Tensor]:
    """Ancestral sampling from the posterior, with its smaller variance (Ho et al. 2020, alg. 2): DDIM with eta 1."""
    return ddim(denoise, latents, sigmas, draw, eta=1.0)


SAMPLERS: dict[str, Sampler] = {"ddim": ddim, "ddpm": ddpm, "euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def get_sampler(name: str) -> Sampler:
    """The sampler of that name. Raises ConfigError listing the known ones."""
    check_choice("sampler", name, SAMPLERS)
    return SAMPLERS[name]

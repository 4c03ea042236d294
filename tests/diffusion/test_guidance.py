"""Guidance is diffusers' formula, in one call of the network."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sdscratch.diffusion import guided

LATENTS = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([1, 500, 999])
COND, UNCOND = torch.randn(2, 3, 7, 4, generator=torch.Generator().manual_seed(1))


class Network:
    """Answers differently for every text and timestep, and counts how often it was asked."""

    calls = 0

    def __call__(self, latents: Tensor, timesteps: Tensor, states: Tensor) -> Tensor:
        self.calls += 1
        each = len(states) // len(latents)
        text = states.mean(dim=1)[:, :, None, None]
        return torch.tanh(latents.repeat(each, 1, 1, 1) * text) + timesteps.repeat(each)[:, None, None, None] / 1000


@pytest.mark.parametrize("guidance_rescale", [0.0, 0.7, 1.0])
@pytest.mark.parametrize("guidance_scale", [0.0, 3.0, 7.5])
def test_guidance_equals_diffusers(guidance_scale, guidance_rescale):
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

    network = Network()
    ours = guided(network, COND, UNCOND, guidance_scale, guidance_rescale)(LATENTS, TIMESTEPS)
    assert network.calls == 1
    cond, uncond = network(LATENTS, TIMESTEPS, COND), network(LATENTS, TIMESTEPS, UNCOND)
    theirs = rescale_noise_cfg(uncond + guidance_scale * (cond - uncond), cond, guidance_rescale)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_scale_one_asks_for_the_prompt_alone():
    network = Network()
    ours = guided(network, COND, None, 1.0)(LATENTS, TIMESTEPS)
    assert torch.equal(ours, network(LATENTS, TIMESTEPS, COND))


def test_full_rescale_restores_the_std_of_every_sample():
    ours = guided(Network(), COND, UNCOND, 7.5, guidance_rescale=1.0)(LATENTS, TIMESTEPS)
    cond = Network()(LATENTS, TIMESTEPS, COND)
    torch.testing.assert_close(ours.std(dim=(1, 2, 3)), cond.std(dim=(1, 2, 3)))


def test_half_precision_is_not_rounded_again_by_guidance():
    def half(latents, timesteps, states):
        return Network()(latents, timesteps, states).bfloat16()

    ours = guided(half, COND, UNCOND, 7.5)(LATENTS, TIMESTEPS)
    cond, uncond = half(LATENTS, TIMESTEPS, COND).float(), half(LATENTS, TIMESTEPS, UNCOND).float()
    torch.testing.assert_close(ours, uncond + 7.5 * (cond - uncond))

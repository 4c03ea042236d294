"""Latents of mean 0 and standard deviation 1, without a change to any picture."""

from __future__ import annotations

import pytest
import torch
from diffusers import AutoencoderKL
from torch.nn.functional import interpolate

from sdscratch.models import new_vae
from sdscratch.models.latent_scale import LatentMoments, with_unit_latents


def pictures(seed: int, count: int) -> torch.Tensor:
    """Coloured blots, in [-1, 1]."""
    blots = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return interpolate(blots, size=(32, 32), mode="bilinear").tanh()


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    """Random, with latents far from unit."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    made = new_vae(**sizes, sample_size=32, mid_block_add_attention=False, posterior_std=0.3)
    with torch.no_grad():
        made.quant_conv.bias[:4] += torch.tensor([3.0, -1.0, 0.0, 7.0])
    return made


@torch.no_grad()
def moments_of(vae: AutoencoderKL, images: torch.Tensor) -> LatentMoments:
    moments = LatentMoments(vae.config.latent_channels)
    for part in images.split(48):
        moments.add(vae.encode(part).latent_dist)
    return moments


def test_moments_are_those_of_draws_from_the_posterior(vae):
    images = pictures(0, 32)
    moments = moments_of(vae, images)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    draws = torch.cat([posterior.sample() for _ in range(20)]).double()
    torch.testing.assert_close(moments.mean, draws.mean((0, 2, 3)), rtol=0, atol=0.01)
    spread = (draws - draws.mean((0, 2, 3), keepdim=True)).square().mean().sqrt()
    assert moments.std == pytest.approx(float(spread), rel=0.01)
    assert moments.as_dict()["elements"] == posterior.mean.numel()


def test_moments_of_parts_add_up_to_those_of_the_whole(vae):
    images = pictures(0, 12)
    whole, parts = moments_of(vae, images), LatentMoments(4)
    parts.totals = moments_of(vae, images[:5]).totals + moments_of(vae, images[5:]).totals
    assert parts.std == pytest.approx(whole.std, rel=1e-6)


def test_latents_become_unit_on_pictures_that_were_not_measured(vae):
    unit = with_unit_latents(vae, moments_of(vae, pictures(0, 400)))
    held_out = moments_of(unit, pictures(1, 400))
    assert held_out.mean.abs().max() * unit.config.scaling_factor < 0.05
    assert held_out.std * unit.config.scaling_factor == pytest.approx(1, abs=0.02)


def test_pictures_and_posterior_widths_stay_and_the_vae_itself_is_left_alone(vae):
    images = pictures(1, 8)
    before = {name: tensor.clone() for name, tensor in vae.state_dict().items()}
    unit = with_unit_latents(vae, moments_of(vae, images))
    with torch.no_grad():
        posteriors = [network.encode(images).latent_dist for network in (vae, unit)]
        decoded = [n.decode(p.mean).sample for n, p in zip((vae, unit), posteriors, strict=True)]
    assert posteriors[0].mean.mean().abs() > 1  # there was something to do
    torch.testing.assert_close(posteriors[1].std, posteriors[0].std)
    torch.testing.assert_close(decoded[1], decoded[0], rtol=0, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in vae.state_dict().items())
    assert vae.config.scaling_factor == 1.0

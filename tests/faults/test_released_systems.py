"""Faults that released systems had, and that no other test would notice; the ledger docs/faults.md names the rest."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import SMALLER

from sdscratch.commands.train import train
from sdscratch.models import new_vae
from sdscratch.models.latent_scale import LatentMoments, with_unit_latents

COPIED = 0.18215


def test_a_logged_loss_is_the_mean_of_its_interval_and_of_nothing_before(tiny_config):
    """One was the mean since the epoch began, so that every curve fell long after learning had stopped."""
    each = train(tiny_config(*SMALLER, "name=each", "max_steps=6")).read_metrics()
    thirds = train(tiny_config(*SMALLER, "name=thirds", "max_steps=6", "callbacks.metrics.every=3")).read_metrics()
    losses = [row["train/loss"] for row in each]
    assert [row["step"] for row in thirds] == [3, 6]
    for row, part in zip(thirds, (losses[:3], losses[3:]), strict=True):
        assert row["train/loss"] == pytest.approx(sum(part) / 3, rel=1e-6)


@pytest.mark.parametrize("std", [0.35, 0.9, 2.4])
def test_whatever_spread_a_vae_gives_its_latents_the_unet_sees_unit_ones(std):
    """A KL weight too small gave 0.35, a copied factor met 0.9, and no factor at all 2.4."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    vae = new_vae(**sizes, sample_size=16, mid_block_add_attention=False)
    pictures = torch.rand(64, 3, 16, 16) * 2 - 1

    def moments(network) -> LatentMoments:
        total = LatentMoments(4)
        with torch.no_grad():
            total.add(network.encode(pictures).latent_dist)
        return total

    with torch.no_grad():  # the spread that is wanted, in means and noise alike
        factor = std / moments(vae).std
        vae.quant_conv.weight[:4].mul_(factor), vae.quant_conv.bias[:4].mul_(factor)
        vae.quant_conv.bias[4:].add_(2 * math.log(factor))
    assert moments(vae).std == pytest.approx(std, rel=0.01)
    unit = with_unit_latents(vae, moments(vae))
    assert unit.config.scaling_factor == pytest.approx(1 / std, rel=0.01)
    assert moments(unit).std * unit.config.scaling_factor == pytest.approx(1, rel=0.01)
    assert abs(unit.config.scaling_factor - COPIED) > 0.1

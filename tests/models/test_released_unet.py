"""The network of the released checkpoint: its weights fit, and give what they gave there."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest
import torch
from released_record import RECORD, recorded_inputs, recorded_weights

from sdscratch.errors import ConfigError
from sdscratch.models import ReleasedUNet, UNet
from sdscratch.models.unet_kinds import unet_from_config

SMALL = {
    "block_out_channels": [RECORD["config"]["ch"] * multiple for multiple in RECORD["config"]["ch_mults"]],
    "layers_per_block": RECORD["config"]["res_blks"],
    "attention_levels": RECORD["config"]["attn_lvls"],
    "num_attention_heads": RECORD["config"]["heads"],
    "cross_attention_dim": RECORD["config"]["ctx_dim"],
}


@pytest.mark.parametrize(("ema", "outputs"), [(False, "eps"), (True, "eps_ema")])
def test_the_released_networks_weights_give_its_outputs(ema, outputs):
    network = ReleasedUNet(**SMALL).eval()
    network.load_state_dict(recorded_weights(ema), strict=True)
    with torch.no_grad():
        found = network(*recorded_inputs())
    torch.testing.assert_close(found, torch.tensor(RECORD["expected"][outputs]), atol=1e-4, rtol=0)


def test_a_text_that_was_read_before_gives_the_same_answer():
    network = ReleasedUNet(**SMALL)
    network.load_state_dict(recorded_weights(ema=False))
    latents, timesteps, text = recorded_inputs()
    torch.testing.assert_close(
        network(latents, timesteps, network.read(text)), network(latents, timesteps, text), atol=0, rtol=0
    )


@torch.no_grad()
def test_several_texts_for_each_picture_are_answered_together():
    network = ReleasedUNet(**SMALL)
    network.load_state_dict(recorded_weights(ema=False))
    latents, timesteps, text = recorded_inputs()
    expected = network(
        torch.cat([latents] * 2), torch.cat([timesteps.expand(len(latents))] * 2), torch.cat([text, -text])
    )
    torch.testing.assert_close(network(latents, timesteps, torch.cat([text, -text])), expected, atol=0, rtol=0)


def test_its_weights_come_in_the_same_order_and_shapes():
    """The optimizer's state in the released file goes by order."""
    found = {name: list(tensor.shape) for name, tensor in ReleasedUNet(**SMALL).named_parameters()}
    assert list(found.items()) == list(RECORD["keys"].items())


def test_at_its_full_size_it_has_the_released_networks_parts():
    with torch.device("meta"):
        network = ReleasedUNet()
    assert len(network.state_dict()) == 560 and not list(network.buffers())
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert shapes["t_emb.0.weight"] == (1280, 320) and shapes["t_emb.2.weight"] == (320, 1280)
    assert shapes["downs.3.tfm.tfm.cross_attn.to_k.weight"] == (640, 768)
    assert shapes["ups.0.skip.weight"] == (1280, 2560, 1, 1) and shapes["ups.5.weight"] == (1280, 1280, 4, 4)
    parts = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert parts == {
        "t_emb": 820_800,
        "conv_in": 11_840,
        "downs": 277_766_720,
        "mid": 88_021_760,
        "ups": 414_085_120,
        "norm_out": 640,
        "conv_out": 11_524,
    }
    assert sum(parts.values()) == 780_718_404


def test_a_new_one_predicts_zero_and_learns_all_of_its_weights():
    """Zeros stand behind zeros: it takes three steps until a gradient has reached everything."""
    torch.manual_seed(0)
    network, (latents, timesteps, text) = ReleasedUNet(**SMALL), recorded_inputs()
    assert network(latents, timesteps, text).abs().max() == 0
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        (network(latents, timesteps, text) - latents).square().mean().backward()
        optimizer.step()
    assert [name for name, p in network.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []


def test_gradient_checkpointing_changes_no_gradient():
    plain = ReleasedUNet(**SMALL)
    plain.load_state_dict(recorded_weights(ema=False))
    thrifty = ReleasedUNet.from_config(plain.config, gradient_checkpointing=True)
    thrifty.load_state_dict(plain.state_dict())
    for network in (plain, thrifty):
        network(*recorded_inputs()).square().mean().backward()
    for ours, theirs in zip(plain.parameters(), thrifty.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-7)


def test_one_timestep_may_stand_for_all_and_be_fractional():
    network, (latents, _, text) = ReleasedUNet(**SMALL).eval(), recorded_inputs()
    network.load_state_dict(recorded_weights(ema=False))
    with torch.no_grad():
        torch.testing.assert_close(network(latents, 7.5, text), network(latents, torch.tensor([7.5, 7.5]), text))


def test_its_config_makes_it_again_and_names_its_kind():
    config = json.loads(json.dumps(ReleasedUNet(**SMALL, sample_size=16).config))
    again = unet_from_config({**config, "_diffusers_version": "0"})
    assert isinstance(again, ReleasedUNet) and again.config == config
    assert type(unet_from_config(UNet(block_out_channels=(32, 32, 32, 32)).config)) is UNet
    with pytest.raises(ConfigError, match="has no freq_shift: remove it"):
        unet_from_config({**config, "freq_shift": 0})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"block_out_channels": [40]}, "expected multiples of 32 and of model.num_attention_heads=8"),
        ({"block_out_channels": [32, 64], "num_attention_heads": 3}, "num_attention_heads=3"),
        ({"attention_levels": [4]}, "expected numbers from 0 to 3"),
        ({"layers_per_block": 0}, "model.layers_per_block is 0"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, Any], said: str):
    with pytest.raises(ConfigError, match=said):
        ReleasedUNet(**{**deepcopy(SMALL), **changed})


def test_latents_that_do_not_halve_evenly_are_refused():
    network, (_, timesteps, text) = ReleasedUNet(**SMALL), recorded_inputs()
    with pytest.raises(ConfigError, match="the latents are 16 x 12.*multiples of 8"):
        network(torch.zeros(2, 4, 16, 12), timesteps, text)

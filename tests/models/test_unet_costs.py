"""What one training step of the full-size network takes, counted: the same numbers on every machine, and less than diffusers'.

In the reference configuration: Stable Diffusion 1.x, 512 px (latents of 64 x 64), batch 32, weights and activations bfloat16.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.bench.work import Work, unet_inputs, work_of
from sdscratch.models import UNet

SD1 = {"cross_attention_dim": 768, "attention_head_dim": 8, "in_channels": 4}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


@cache
def cost(kind: type, layout: str) -> Work:
    return work_of(lambda: kind(**SD1), unet_inputs(SD1, 32, 64), memory_format=LAYOUTS[layout])


def test_diffusers_is_counted_as_on_record():
    theirs = cost(UNet2DConditionModel, "nchw")
    assert (theirs.forward.total(), theirs.backward.total()) == (728, 1072)
    assert theirs.bytes_touched / 1e9 == pytest.approx(7.73, abs=0.005)
    assert theirs.kept_bytes / 1e9 == pytest.approx(0.937, abs=0.001)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_training_step_takes_fewer_kernels_fewer_bytes_and_less_memory_than_in_diffusers(layout):
    ours, theirs = cost(UNet, layout), cost(UNet2DConditionModel, "nchw")
    assert ours.kernels <= 0.84 * theirs.kernels
    assert ours.bytes_touched <= (0.91 if layout == "nchw" else 0.90) * theirs.bytes_touched
    assert ours.kept_bytes <= 0.90 * theirs.kept_bytes


def test_channels_last_needs_no_copy_in_either_direction():
    ours = cost(UNet, "nhwc")
    assert (ours.forward + ours.backward).keys().isdisjoint({"clone", "copy_", "contiguous"})


def test_what_is_joined_more_often_are_weights():
    """Those of 16 self-attentions; diffusers joins 12 skips and a sinusoid, and once more an output that is one already."""
    ours, theirs = cost(UNet, "nhwc").forward, cost(UNet2DConditionModel, "nhwc").forward
    assert {name: number - theirs[name] for name, number in ours.items() if number > theirs[name]} == {"cat": 15}


@pytest.mark.parametrize(("side", "tflop"), [(32, 0.537), (64, 2.407)])
def test_forward_and_backward_are_the_arithmetic_of_stable_diffusion(side, tflop):
    with torch.device("meta"):
        unet = UNet(**SD1)
        latents, timesteps, text = (torch.empty(shape) for shape in unet_inputs(SD1, 1, side))
        with FlopCounterMode(display=False) as counter:
            unet(latents, timesteps, text).sum().backward()
    assert counter.get_total_flops() / 1e12 == pytest.approx(tflop, rel=1e-3)


def test_what_two_texts_of_a_picture_have_in_common_is_not_computed_twice():
    """With guidance, at 512 px; the first level's first attention to the picture itself is most of it."""
    tflop = []
    with torch.device("meta"), torch.no_grad():
        unet = UNet(**SD1)
        for pictures in (2, 1):
            with FlopCounterMode(display=False) as counter:
                unet(torch.empty(pictures, 4, 64, 64), torch.empty(pictures), torch.empty(2, 77, 768))
            tflop.append(counter.get_total_flops() / 1e12)
    assert tflop == pytest.approx([1.607, 1.566], abs=1e-3)

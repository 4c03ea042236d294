"""The linear map from latents to a glance at the picture."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from sdscratch.models.encoders import downsampling_factor
from sdscratch.serving.preview import Preview


@pytest.fixture(scope="module")
def preview(pipe) -> Preview:
    return Preview(pipe.encoders, downsampling_factor(pipe.encoders.vae))


def test_a_glance_is_like_the_picture(pipe, preview):
    factor = downsampling_factor(pipe.encoders.vae)
    latents = torch.nn.functional.interpolate(pipe.noise(8, 4 * factor, seed=3), scale_factor=4)
    pictures = pipe.encoders.decode(latents)
    small = torch.nn.functional.avg_pool2d(pictures, factor).clamp(-1, 1)
    glances = torch.stack([torch.from_numpy(np.array(preview(latent[None]))) for latent in latents])
    seen = glances.permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.corrcoef(torch.stack([seen.flatten(), small.flatten()]))[0, 1] > 0.7


def test_several_are_side_by_side_in_their_own_shape(preview):
    latents = torch.randn(4, 4, 6, 10)
    assert preview(latents).size == (30, 12)
    alone = np.asarray(preview(latents[1:2]))
    assert np.array_equal(np.asarray(preview(latents))[:6, 10:20], alone)


def test_it_costs_a_few_milliseconds(preview):
    latents = torch.randn(1, 4, 64, 64)
    preview(latents)
    start = time.process_time()
    for _ in range(10):
        preview(latents)
    assert (time.process_time() - start) / 10 < 0.05

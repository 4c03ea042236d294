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


class Mixing:
    """Encoders whose latents are the colours of their places, mixed: what a preview has to find out."""

    factor = 4

    def __init__(self) -> None:
        self.vae = torch.nn.Linear(3, 5)

    def encode_images(self, images: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        colours = torch.nn.functional.avg_pool2d(images, self.factor)
        return self.vae(colours.movedim(1, -1)).movedim(-1, 1).detach()


def test_a_glance_is_the_picture_where_latents_are_mixtures_of_colours():
    encoders = Mixing()
    glance = Preview(encoders, encoders.factor)
    colours = torch.rand((1, 3, 6, 10), generator=torch.Generator().manual_seed(5)) * 2 - 1
    latents = encoders.encode_images(torch.nn.functional.interpolate(colours, scale_factor=4), torch.zeros(()))
    expected = ((colours[0].permute(1, 2, 0) + 1) * 127.5).round()
    assert np.abs(np.asarray(glance(latents), int) - expected.numpy()).max() <= 1


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

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
    assert np.abs(np.asarray(glance(latents).convert("RGB"), int) - expected.numpy()).max() <= 1


def test_several_lie_in_a_square_apart_from_each_other(preview):
    latents = torch.randn(4, 4, 6, 10)
    sheet = np.asarray(preview(latents))
    assert sheet.shape == (6 + 1 + 6, 10 + 1 + 10, 4)
    for i, (top, left) in enumerate([(0, 0), (0, 11), (7, 0), (7, 11)]):
        assert np.array_equal(sheet[top : top + 6, left : left + 10], np.asarray(preview(latents[i : i + 1])))
    assert not sheet[6].any() and not sheet[:, 10].any()


def test_any_number_has_room(preview):
    sizes = [preview(torch.randn(count, 4, 6, 10)).size for count in (2, 3, 8, 16)]
    assert sizes == [(21, 6), (21, 13), (32, 20), (43, 27)]


def test_it_costs_a_few_milliseconds(preview):
    latents = torch.randn(1, 4, 64, 64)
    preview(latents)
    start = time.process_time()
    for _ in range(10):
        preview(latents)
    assert (time.process_time() - start) / 10 < 0.05

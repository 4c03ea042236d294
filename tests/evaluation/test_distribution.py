"""Distances between sets of pictures: what they are for sets whose distance is known."""

import numpy as np
import pytest
import torch

from sdscratch.data.shapes import draw, scene_at
from sdscratch.evaluation.distribution import covered, fid, fid_estimate, inception_score, kid

COUNT, WIDTH = 400, 12


@pytest.fixture(scope="module")
def halves() -> tuple[torch.Tensor, torch.Tensor]:
    """Features of two sets of drawn scenes; the features are random sums of pixels."""
    pictures = [np.asarray(draw(scene_at(0, "train", i), 16)) for i in range(2 * COUNT)]
    features = looked_at(np.stack(pictures))
    return features[:COUNT], features[COUNT:]


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return looked_at(np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16, 3)))


def looked_at(pictures: np.ndarray) -> torch.Tensor:
    """(N, H, W, 3) of 255 -> (N, WIDTH)."""
    pixels = torch.from_numpy(pictures.reshape(len(pictures), -1) / 127.5 - 1)
    weights = torch.randn(pixels.shape[1], WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (pixels @ weights / 16).tanh().float()


def gaussians(like: torch.Tensor, seed: int) -> torch.Tensor:
    """As many samples of the Gaussian with the moments of `like`."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(like.double().T.cov() + 1e-9 * torch.eye(WIDTH))
    return like.double().mean(0) + torch.randn(COUNT, WIDTH, generator=generator, dtype=torch.float64) @ root.T


def test_fid_of_two_halves_of_real_pictures_is_near_its_bias_floor_and_that_of_noise_far_above(halves, noise):
    floors = [fid(gaussians(halves[0], seed), gaussians(halves[0], seed + 100)) for seed in range(10)]
    of_halves = fid(*halves)
    assert 0.5 * min(floors) < of_halves < 2 * max(floors)
    assert fid(halves[0], noise) > 20 * of_halves


def test_fid_of_a_set_and_the_same_set_moved_is_the_square_of_the_way():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    assert fid(features, features + 3.0) == pytest.approx(6 * 3.0**2, rel=1e-6)
    assert fid(features, features) == pytest.approx(0, abs=1e-5)


def test_fid_falls_with_the_number_of_pictures_alone(halves):
    assert fid(halves[0][:50], halves[1][:50]) > 2 * fid(*halves)


def test_an_interval_of_fid_holds_its_value_and_no_negative_distance(halves):
    found = fid_estimate(halves[0][:40], halves[1][:40], replicates=50)
    assert 0 <= found.low < found.value < found.high and found.samples == 40


def test_kid_of_two_halves_is_about_0_and_the_same_every_time(halves, noise):
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    found = kid(*halves)
    assert kid(*halves) == found and abs(found) < 0.02 * kid(halves[0], noise)
    assert torch.equal(before, torch.random.get_rng_state())


def test_precision_and_recall_tell_a_narrow_set_from_a_wrong_one(halves, noise):
    real, other = halves
    narrow = real[:1].repeat(COUNT, 1) + 1e-3 * torch.randn(COUNT, WIDTH)
    assert covered(other, by=real).mean() > 0.6 and covered(real, by=other).mean() > 0.6
    assert covered(narrow, by=real).mean() > 0.9 and covered(real, by=narrow).mean() < 0.05
    assert covered(noise, by=real).mean() < 0.3


def test_the_inception_score_is_the_number_of_classes_that_are_told_apart():
    sure = 100 * torch.eye(8).repeat(25, 1)
    assert inception_score(sure) == pytest.approx(8, rel=1e-3)
    assert inception_score(torch.zeros(40, 8)) == pytest.approx(1)

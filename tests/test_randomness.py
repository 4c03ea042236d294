"""Draws are pure functions of (seed, purpose, position), spread as they should be, and tell nothing of one another."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdscratch.randomness import generator, key, noise, permutation, uniform

N = 4096
KEYS = st.tuples(st.integers(), st.text(max_size=8), st.integers(min_value=0))


def draws(seed: int, purpose: str, first: int = 0) -> np.ndarray:
    return np.array([uniform(seed, purpose, first + position) for position in range(N)])


def test_the_draws_are_those_of_every_run_before():
    """A change here changes every run that anyone wants to repeat or resume."""
    assert key(0, "noise", 0) == 18289175030525828258
    assert uniform(1, "timestep", 2) == 0.7580301601028325
    assert permutation(0, "order", 3, 5).tolist() == [4, 2, 0, 1, 3]
    assert noise(0, "noise", 0, (2,)).tolist() == pytest.approx([0.5109870433807373, 1.408002495765686])


@given(KEYS, KEYS)
def test_every_key_draws_its_own_number(a, b):
    assert (key(*a) == key(*b)) == (a == b)
    assert 0 <= key(*a) < 2**64


def test_draws_are_uniform():
    values = draws(0, "timestep")
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.bincount((values * 64).astype(int), minlength=64)
    chi_square = ((counts - N / 64) ** 2 / (N / 64)).sum()
    assert 30 < chi_square < 110  # 63 degrees of freedom: 63 +- 4.2 standard deviations of 11.2


def test_every_bit_of_a_key_is_as_often_set_as_not():
    bits = np.array([[key(0, "bits", position) >> bit & 1 for bit in range(64)] for position in range(N)])
    assert abs(bits.mean(0) - 0.5).max() < 5 * 0.5 / N**0.5


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "crop_x", 0), (0, "crop_y", 0)),
        ((0, "timestep", 0), (1, "timestep", 0)),
        ((0, "timestep", 0), (0, "timestep", 1)),
    ],
    ids=["purposes", "seeds", "neighbours"],
)
def test_draws_tell_nothing_of_one_another(one, other):
    assert abs(np.corrcoef(draws(*one), draws(*other))[0, 1]) < 5 / N**0.5


def test_noise_is_standard_normal_and_independent_between_positions():
    samples = torch.stack([noise(0, "noise", position, (4, 8, 8)) for position in range(64)]).flatten(1)
    assert samples.mean().abs() < 5 / samples.numel() ** 0.5
    assert (samples.std() - 1).abs() < 5 / (2 * samples.numel()) ** 0.5
    correlations = torch.corrcoef(samples) - torch.eye(64)
    assert correlations.abs().max() < 6 / 256**0.5
    assert samples.dtype == torch.float32


def test_no_draw_depends_on_global_generators_or_moves_them():
    torch.manual_seed(1)
    np.random.seed(1)
    before = noise(3, "noise", 4, (5,)), permutation(3, "order", 4, 50), torch.random.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)
    assert torch.equal(noise(3, "noise", 4, (5,)), before[0])
    assert np.array_equal(permutation(3, "order", 4, 50), before[1])
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), before[2])
    assert np.random.get_state()[2] == 624  # nothing drawn since the seeding


@given(st.integers(0, 2**40), st.integers(1, 300))
def test_a_permutation_holds_every_number_once(position, length):
    assert sorted(permutation(0, "order", position, length)) == list(range(length))


def test_generators_of_one_key_start_alike_and_are_on_the_cpu():
    one, other = generator(1, "a", 2), generator(1, "a", 2)
    torch.rand(3, generator=one)
    assert one.device.type == "cpu"
    assert not torch.equal(one.get_state(), other.get_state())
    assert torch.equal(generator(1, "a", 2).get_state(), other.get_state())

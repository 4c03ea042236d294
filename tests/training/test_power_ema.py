"""Averages with a power-function profile: the closed form of what they hold, and any length out of two."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sdscratch.errors import ConfigError
from sdscratch.training.power_ema import LONGEST, PowerEma, Profile, combination, exponent

STEPS = 1000


def trajectory(steps: int = STEPS) -> torch.Tensor:
    """Weights after each step, (steps, 3) float64: one wanders, one settles, one swings; from far away at the start."""
    t = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(steps, generator=generator, dtype=torch.float64).cumsum(0) / steps**0.5
    return torch.stack([walk, 1 + 5 * torch.exp(-8 * t), torch.sin(40 * t)], dim=1)


def tracked(length: float, every: int) -> tuple[list[torch.Tensor], list[Profile]]:
    """Snapshots of an average of the trajectory, and their profiles."""
    network = nn.Linear(3, 1, bias=False)
    average, snapshots, profiles = PowerEma(network, length), [], []
    for step, weights in enumerate(trajectory(), start=1):
        with torch.no_grad():
            network.weight.copy_(weights[None])
        average.update(network)
        if step % every == 0:
            snapshots.append(average.network.weight[0].double())
            profiles.append(Profile(length, average.num_updates))
    return snapshots, profiles


def shares(length: float, updates: int) -> torch.Tensor:
    """What each step's weights count: the integral of the profile over that step."""
    edges = (torch.arange(updates + 1, dtype=torch.float64) / updates) ** (exponent(length) + 1)
    return edges.diff()


@pytest.mark.parametrize(("length", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.25, 0.72)])
def test_the_exponents_of_lengths_are_those_of_the_paper_and_give_the_length_back(length, gamma):
    g = exponent(length)
    assert g == pytest.approx(gamma, abs=0.005)
    assert (g + 1) ** 0.5 / (g + 2) / (g + 3) ** 0.5 == pytest.approx(length, rel=1e-9)
    tau = (torch.arange(10**6) + 0.5) / 10**6
    density = (g + 1) * tau.double() ** g
    mean = (density * tau).mean()
    assert ((density * (tau - mean) ** 2).mean() ** 0.5).item() == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.10, LONGEST])
def test_an_average_is_the_closed_form_of_all_weights_and_holds_nothing_of_the_first(length):
    (snapshot,), _ = tracked(length, every=STEPS)
    expected = shares(length, STEPS) @ trajectory()
    torch.testing.assert_close(snapshot, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("length", "most"), [(0.05, 1e-5), (0.06, 1e-3), (0.07, 1e-3), (0.10, 1e-5), (0.15, 1e-3), (0.20, 2e-3)]
)
def test_two_averages_make_one_of_any_length_between_and_around_them(length, most):
    """Hundred snapshots of each. most: of the error, as a share of how far the average is from the last weights."""
    of_both = [tracked(known, every=STEPS // 100) for known in (0.05, 0.10)]
    snapshots, profiles = (sum(parts, []) for parts in zip(*of_both, strict=True))
    factors, distance = combination(profiles, Profile(length, STEPS))
    made = torch.from_numpy(factors) @ torch.stack(snapshots)
    direct = shares(length, STEPS) @ trajectory()
    error = (made - direct).norm() / (direct - trajectory()[-1]).norm()
    assert error < most and distance < most


def test_an_average_of_the_past_comes_out_of_the_snapshots_up_to_then():
    (snapshots, profiles), steps = tracked(0.10, every=10), STEPS // 2
    factors, distance = combination(profiles[:50], Profile(0.12, steps))
    made = torch.from_numpy(factors) @ torch.stack(snapshots[:50])
    torch.testing.assert_close(made, shares(0.12, steps) @ trajectory()[:steps], rtol=5e-3, atol=5e-3)
    assert distance < 0.02


def test_fewer_snapshots_fit_worse_and_it_shows():
    distances = []
    for count in (50, 10, 3):
        profiles = [Profile(known, STEPS * (i + 1) // count) for known in (0.05, 0.10) for i in range(count)]
        factors, distance = combination(profiles, Profile(0.15, STEPS))
        assert factors.sum() == pytest.approx(1, abs=1e-9)
        distances.append(distance)
    assert distances == sorted(distances) and distances[0] < 0.01 < distances[-1]


def test_snapshots_of_the_same_moment_do_no_harm():
    """As after steps that were not taken."""
    profiles = [Profile(0.05, 90), Profile(0.05, 90), Profile(0.10, 90), Profile(0.05, 100), Profile(0.10, 100)]
    factors, distance = combination(profiles, Profile(0.10, 100))
    assert np.abs(factors).sum() == pytest.approx(1, abs=1e-6) and distance < 1e-6


@pytest.mark.parametrize("length", [0, -0.1, 1e-300, 0.29, 1, True, "0.05", None, float("nan")])
def test_what_is_no_length_is_refused(length):
    with pytest.raises(ConfigError, match=r"an average of length .*: expected a number in \[0.0001, 0.28\]"):
        exponent(length)

"""Distributions of timesteps are what their names say, at any uniform number."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sdscratch.diffusion import DiffusionObjective, FlowMatching, LogitNormal, NoiseSchedule, Uniform
from sdscratch.errors import ConfigError

EVENLY_SPACED = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000


@pytest.mark.parametrize("num_train_timesteps", [10, 200, 1000])
def test_uniform_visits_every_discrete_timestep_equally_often(num_train_timesteps):
    objective = DiffusionObjective(NoiseSchedule(num_train_timesteps=num_train_timesteps))
    timesteps = objective.timesteps(EVENLY_SPACED)
    assert timesteps.dtype == torch.int64
    assert torch.equal(
        timesteps.bincount(), torch.full((num_train_timesteps,), len(EVENLY_SPACED) // num_train_timesteps)
    )


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 1.0), (-1.0, 0.6)])
def test_the_logit_of_logit_normal_is_normal(mean, std):
    logits = LogitNormal(mean, std)(EVENLY_SPACED).logit()
    assert logits.mean().item() == pytest.approx(mean, abs=1e-6)
    assert logits.std().item() == pytest.approx(std, rel=1e-3)


def test_flow_timesteps_are_continuous():
    timesteps = FlowMatching(timestep_distribution=Uniform()).timesteps(EVENLY_SPACED)
    assert timesteps.dtype == torch.float32
    torch.testing.assert_close(timesteps, (1000 * EVENLY_SPACED).float())


@given(
    u=st.floats(0, 1, exclude_max=True),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    distribution=st.sampled_from([Uniform(), LogitNormal(), LogitNormal(2.0, 3.0)]),
)
def test_no_uniform_number_leaves_the_schedule(u, dtype, distribution):
    u = torch.tensor([u], dtype=dtype)
    discrete = DiffusionObjective(NoiseSchedule(), timestep_distribution=distribution).timesteps(u)
    continuous = FlowMatching(timestep_distribution=distribution).timesteps(u)
    assert 0 <= discrete.item() <= 999
    assert 0 <= continuous.item() <= 1000


def test_a_distribution_without_width_is_refused():
    with pytest.raises(ConfigError, match="positive"):
        LogitNormal(std=0.0)

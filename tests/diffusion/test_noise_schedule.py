"""Schedules equal diffusers', and say what they cannot do."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from sdscratch.diffusion import FlowSchedule, NoiseSchedule
from sdscratch.errors import ConfigError

DIFFUSERS_KINDS = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}


def ours_and_theirs(**settings) -> tuple[NoiseSchedule, DDIMScheduler]:
    """The same schedule twice, from our words for it."""
    ours = NoiseSchedule(**settings)
    theirs = DDIMScheduler(
        num_train_timesteps=ours.num_train_timesteps,
        beta_start=ours.beta_start,
        beta_end=ours.beta_end,
        beta_schedule=DIFFUSERS_KINDS[ours.kind],
        rescale_betas_zero_snr=ours.rescale_zero_terminal_snr,
        timestep_spacing=ours.timestep_spacing,
        steps_offset=ours.steps_offset,
    )
    return ours, theirs


@pytest.mark.parametrize("rescale", [False, True])
@pytest.mark.parametrize("num_train_timesteps", [2, 200, 1000])
@pytest.mark.parametrize("kind", DIFFUSERS_KINDS)
def test_alphas_cumprod_equal_diffusers(kind, num_train_timesteps, rescale):
    ours, theirs = ours_and_theirs(
        kind=kind, num_train_timesteps=num_train_timesteps, rescale_zero_terminal_snr=rescale
    )
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod, atol=1e-7, rtol=0)


USUAL = [
    NoiseSchedule(),
    NoiseSchedule("cosine"),
    NoiseSchedule("linear", beta_start=1e-4, beta_end=0.02),
]
WITHOUT_SIGNAL = [
    NoiseSchedule(beta_end=0.1),
    NoiseSchedule(beta_end=0.9),
    NoiseSchedule(rescale_zero_terminal_snr=True),
]


@pytest.mark.parametrize("schedule", [*USUAL, *WITHOUT_SIGNAL], ids=str)
def test_epsilon_is_refused_where_float32_rounds_the_latents_away_at_the_last_timestep(schedule):
    last = schedule.scales(torch.tensor([schedule.num_train_timesteps - 1]))
    latents_are_lost = bool(torch.ones(1) * last.signal + last.noise_level == last.noise_level)
    assert latents_are_lost == (schedule in WITHOUT_SIGNAL)
    schedule.check_prediction_type("v_prediction")
    with pytest.raises(ConfigError, match="zero terminal SNR") if latents_are_lost else nullcontext():
        schedule.check_prediction_type("epsilon")


def test_more_steps_of_a_flow_than_there_are_timesteps_are_refused():
    with pytest.raises(ConfigError, match="num_inference_steps is 1000000000: .* at most 1000"):
        FlowSchedule().grid(10**9)


def test_the_default_is_the_schedule_of_stable_diffusion():
    alphas_cumprod = NoiseSchedule().alphas_cumprod
    assert alphas_cumprod[0].item() == pytest.approx(0.99915)
    assert alphas_cumprod[-1].item() == pytest.approx(0.0046601, rel=1e-4)


@pytest.mark.parametrize("kind", DIFFUSERS_KINDS)
def test_rescaling_leaves_no_signal_at_the_end_and_all_of_it_at_the_start(kind):
    plain, rescaled = NoiseSchedule(kind=kind), NoiseSchedule(kind=kind, rescale_zero_terminal_snr=True)
    assert rescaled.alphas_cumprod[-1] == 0
    assert rescaled.alphas_cumprod[0] == pytest.approx(plain.alphas_cumprod[0].item())
    assert rescaled.sigmas.isfinite().all()


@pytest.mark.parametrize(
    ("schedule", "tolerance"),
    [(NoiseSchedule(), 1e-6), (NoiseSchedule(kind="cosine"), 1e-6), (FlowSchedule(), 1e-3)],  # a whole timestep in flow
)
def test_a_timestep_and_its_sigma_have_the_same_scales(schedule, tolerance):
    timesteps, sigmas = schedule.grid(10)
    by_sigma = torch.tensor([schedule.scales_at(sigma) for sigma in sigmas[:-1].tolist()])
    by_timestep = torch.stack(schedule.scales(timesteps), dim=1)
    torch.testing.assert_close(by_timestep, by_sigma, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("spacing", "steps_offset"), [("leading", 0), ("leading", 1), ("trailing", 0), ("linspace", 0)]
)
@pytest.mark.parametrize("num_train_timesteps", [200, 1000])
def test_inference_timesteps_equal_diffusers(num_train_timesteps, spacing, steps_offset):
    ours, theirs = ours_and_theirs(
        num_train_timesteps=num_train_timesteps, timestep_spacing=spacing, steps_offset=steps_offset
    )
    for num_inference_steps in range(1, num_train_timesteps - steps_offset):
        theirs.set_timesteps(num_inference_steps)
        # Their trailing spacing counts by floats, and sometimes ends with one more timestep, -1.
        expected = theirs.timesteps[:num_inference_steps]
        assert torch.equal(ours.grid(num_inference_steps).timesteps, expected), num_inference_steps


def test_flow_timesteps_and_sigmas_equal_diffusers():
    theirs = DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=1)
    for num_inference_steps in (*range(1, 60), 100, 250, 999, 1000):
        theirs.set_timesteps(num_inference_steps)
        timesteps, sigmas = FlowSchedule().grid(num_inference_steps)
        assert torch.equal(timesteps, theirs.timesteps), num_inference_steps
        torch.testing.assert_close((sigmas / (1 + sigmas)).float(), theirs.sigmas, atol=1e-7, rtol=0)


def test_flow_sampling_starts_at_the_last_timestep_and_ends_clean():
    timesteps, sigmas = FlowSchedule().grid(4)
    assert timesteps[0] == 999
    assert sigmas[0] == pytest.approx(0.999 / 0.001)
    assert sigmas[-1] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "cosin"}, "Did you mean 'cosine'"),
        ({"timestep_spacing": "even"}, "leading, trailing or linspace"),
        ({"num_train_timesteps": 1}, "at least 2"),
        ({"beta_start": 0.02, "beta_end": 0.01}, "beta_start <= beta_end"),
    ],
)
def test_what_is_no_schedule_is_refused_with_its_name(settings, message):
    with pytest.raises(ConfigError, match=message):
        NoiseSchedule(**settings)


@pytest.mark.parametrize("num_inference_steps", [0, 201])
def test_more_steps_than_timesteps_are_refused(num_inference_steps):
    with pytest.raises(ConfigError, match="expected 1 to 200"):
        NoiseSchedule(num_train_timesteps=200).grid(num_inference_steps)


@pytest.mark.parametrize("steps_offset", [-1, 1])
def test_an_offset_that_leaves_the_schedule_is_refused(steps_offset):
    with pytest.raises(ConfigError, match="timestep_spacing=trailing"):
        NoiseSchedule(timestep_spacing="leading", steps_offset=steps_offset).grid(1000)

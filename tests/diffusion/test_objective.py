"""Noise, targets and weights: against diffusers where it has them, against closed forms elsewhere."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given
from hypothesis import strategies as st

from sdscratch.diffusion import DiffusionObjective, FlowMatching, NoiseSchedule
from sdscratch.diffusion.prediction import Scales, denoised
from sdscratch.errors import ConfigError

TIMESTEPS = torch.tensor([0, 1, 250, 500, 998, 999])
TERMINAL = NoiseSchedule(rescale_zero_terminal_snr=True)


def a_batch(size: int = len(TIMESTEPS)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, size, 4, 3, 5, generator=generator)
    return latents, noise


def all_objectives(gamma: float | None) -> list[DiffusionObjective | FlowMatching]:
    return [
        DiffusionObjective(NoiseSchedule(), "epsilon", gamma),
        DiffusionObjective(NoiseSchedule(kind="cosine"), "epsilon", gamma),
        DiffusionObjective(NoiseSchedule(), "v_prediction", gamma),
        DiffusionObjective(TERMINAL, "v_prediction", gamma),
        FlowMatching(gamma),
    ]


@pytest.mark.parametrize("rescale", [False, True])
def test_noisy_latents_and_targets_equal_diffusers(rescale):
    schedule = NoiseSchedule(rescale_zero_terminal_snr=rescale)
    objective = DiffusionObjective(schedule, "v_prediction")
    theirs = DDPMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, rescale_betas_zero_snr=rescale
    )
    latents, noise = a_batch()
    tolerance = {"atol": 1e-6, "rtol": 0}
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    torch.testing.assert_close(noisy, theirs.add_noise(latents, noise, TIMESTEPS), **tolerance)
    velocity = objective.target(latents, noise, TIMESTEPS)
    torch.testing.assert_close(velocity, theirs.get_velocity(latents, noise, TIMESTEPS), **tolerance)


def test_epsilon_asks_for_the_noise():
    latents, noise = a_batch()
    assert torch.equal(DiffusionObjective(NoiseSchedule()).target(latents, noise, TIMESTEPS), noise)


def test_flow_matching_mixes_in_a_straight_line_and_asks_for_its_slope():
    latents, noise = a_batch(3)
    objective, timesteps = FlowMatching(), torch.tensor([0.0, 250.0, 1000.0])
    noisy = objective.add_noise(latents, noise, timesteps)
    torch.testing.assert_close(noisy, torch.stack([latents[0], 0.75 * latents[1] + 0.25 * noise[1], noise[2]]))
    assert torch.equal(objective.target(latents, noise, timesteps), noise - latents)


@pytest.mark.parametrize("objective", all_objectives(None), ids=str)
def test_denoised_inverts_the_target(objective):
    latents, noise = a_batch()
    scales = objective.noise_schedule.scales(TIMESTEPS)
    noisy = objective.add_noise(latents, noise, TIMESTEPS)
    target = objective.target(latents, noise, TIMESTEPS)
    for i in range(4):  # near pure noise, float32 holds too little of the latents to invert
        here = Scales(scales.signal[i].item(), scales.noise_level[i].item())
        clean = denoised(objective.prediction_type, target[i], noisy[i], here)
        torch.testing.assert_close(clean, latents[i], atol=1e-5, rtol=0)


@pytest.mark.parametrize("objective", all_objectives(5.0), ids=str)
def test_min_snr_weighs_the_error_of_the_clean_latents(objective):
    """Whatever is predicted, loss = min(SNR, gamma) * (error of the clean latents)^2, by its own definition."""
    timesteps = TIMESTEPS[1:5]  # SNR and its inverse are finite here
    latents, noise = (x[1:5].double() for x in a_batch())
    signal, noise_level = (x.double() for x in objective.noise_schedule.scales(timesteps))

    def network(noisy, timesteps, states):
        return objective.target(latents, noise, timesteps) + 0.01

    losses = objective(network, latents, noise, timesteps, torch.zeros(4, 1, 1))
    for i in range(4):
        scales = Scales(signal[i].item(), noise_level[i].item())
        noisy = objective.add_noise(latents, noise, timesteps)[i]
        output = network(noisy, timesteps, None)[i]
        clean_error = (denoised(objective.prediction_type, output, noisy, scales) - latents[i]).square().mean()
        snr = (scales.signal / scales.noise_level) ** 2
        torch.testing.assert_close(losses.weighted[i].double(), min(snr, 5.0) * clean_error, rtol=1e-3, atol=0)


def test_min_snr_weights_equal_their_closed_forms():
    snr = 1 / NoiseSchedule().sigmas[TIMESTEPS].float() ** 2
    epsilon = DiffusionObjective(NoiseSchedule(), "epsilon", 5.0).weights(TIMESTEPS)
    torch.testing.assert_close(epsilon, snr.clamp(max=5) / snr)
    velocity = DiffusionObjective(NoiseSchedule(), "v_prediction", 5.0).weights(TIMESTEPS)
    torch.testing.assert_close(velocity, snr.clamp(max=5) / (snr + 1))
    s = torch.tensor([0.1, 0.5, 0.9])
    flow = FlowMatching(5.0).weights(1000 * s)
    torch.testing.assert_close(flow, ((1 - s) / s).square().clamp(max=5) * s.square())


@given(
    objective=st.sampled_from(range(5)),
    gamma=st.none() | st.floats(1e-3, 1e3),
    fraction=st.floats(0, 1) | st.sampled_from([0.0, 1e-9, 1.0]),
)
def test_weights_are_finite_and_not_negative_at_every_timestep(objective, gamma, fraction):
    objective = all_objectives(gamma)[objective]
    timesteps = objective.noise_schedule.timesteps_at(torch.tensor([fraction], dtype=torch.float64))
    weights = objective.weights(timesteps)
    assert weights.dtype == torch.float32
    assert weights.isfinite().all()
    assert (weights >= 0).all()


def test_without_gamma_all_losses_count_the_same():
    for objective in all_objectives(None):
        assert torch.equal(objective.weights(TIMESTEPS), torch.ones(len(TIMESTEPS)))


def test_losses_are_float32_under_autocast():
    latents, noise = a_batch(2)
    network = torch.nn.Conv2d(4, 4, 1)
    objective, timesteps = DiffusionObjective(NoiseSchedule()), torch.tensor([10, 900])
    with torch.autocast("cpu", torch.bfloat16):
        losses = objective(lambda x, t, c: network(x), latents, noise, timesteps, torch.zeros(2, 1, 1))
        predicted = network(objective.add_noise(latents, noise, timesteps))
    assert predicted.dtype == torch.bfloat16
    assert losses.unweighted.dtype == losses.weighted.dtype == torch.float32
    expected = (predicted.float() - noise).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses.unweighted, expected)


def test_losses_are_float32_even_of_half_precision_latents():
    latents, noise = (x.bfloat16() for x in a_batch())
    losses = FlowMatching()(lambda x, t, c: x.bfloat16(), latents, noise, TIMESTEPS.float(), noise)
    assert losses.unweighted.dtype == torch.float32


def test_a_schedule_first_used_in_inference_mode_still_trains():
    schedule = NoiseSchedule(beta_end=0.0123)  # not used by any other test, so nothing of it is cached
    objective = DiffusionObjective(schedule, "v_prediction", 5.0)
    latents, noise = a_batch()
    with torch.inference_mode():
        objective.add_noise(latents, noise, TIMESTEPS)
    network = torch.nn.Conv2d(4, 4, 1)
    objective(lambda x, t, c: network(x), latents, noise, TIMESTEPS, noise).weighted.mean().backward()
    assert network.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiffusionObjective(TERMINAL, "epsilon"), "zero terminal SNR"),
        (lambda: DiffusionObjective(NoiseSchedule(), "flow_prediction"), "objective=flow_matching"),
        (lambda: DiffusionObjective(NoiseSchedule(), "v-prediction"), "Did you mean 'v_prediction'"),
        (lambda: FlowMatching(min_snr_gamma=0.0), "positive"),
    ],
)
def test_combinations_that_cannot_work_are_refused(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

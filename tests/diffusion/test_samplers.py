"""Samplers against a network that is right by construction: of clean latents N(MEAN, STD^2) the best guess is known.

Nothing is trained, so what differs from the truth is the sampler's own error.
"""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from sdscratch.diffusion import (
    SAMPLERS,
    Denoiser,
    DiffusionObjective,
    FlowSchedule,
    NoiseSchedule,
    ddim,
    euler,
    get_sampler,
)
from sdscratch.diffusion.prediction import target
from sdscratch.errors import ConfigError

MEAN, STD = -3.0, 0.5
TERMINAL = NoiseSchedule(rescale_zero_terminal_snr=True)


def perfect_denoiser(latents: Tensor, sigma: float) -> Tensor:
    """The mean of clean latents, given clean + sigma * noise."""
    return MEAN + STD**2 / (STD**2 + sigma**2) * (latents - MEAN)


def perfect_network(schedule: NoiseSchedule | FlowSchedule, prediction_type: str):
    """The same as a network: sees scaled latents and timesteps only, and answers in its own prediction type."""

    def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
        scales = schedule.scales(timesteps)
        signal, noise_level = (scale.double()[0] for scale in scales)
        clean = MEAN + signal * STD**2 / (signal**2 * STD**2 + noise_level**2) * (noisy - signal * MEAN)
        return target(prediction_type, clean, (noisy - signal * clean) / noise_level, scales)

    return network


def normal(size: int = 10_000, seed: int = 0) -> Tensor:
    """Noise (1, size) of mean exactly 0 and standard deviation exactly 1."""
    noise = torch.randn(1, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise - noise.mean()) / noise.std()


def draw(step: int) -> Tensor:
    return normal(seed=1 + step)


def last(steps) -> Tensor:
    *_, latents = steps
    return latents


@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [
        (NoiseSchedule(), "epsilon"),
        (NoiseSchedule(kind="cosine"), "epsilon"),
        (NoiseSchedule(kind="linear", num_train_timesteps=200, beta_end=0.1), "v_prediction"),
        (NoiseSchedule(), "v_prediction"),
        (TERMINAL, "v_prediction"),
        (FlowSchedule(), "flow_prediction"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_perfect_network_gives_the_mean_and_std_of_the_data(name, schedule, prediction_type):
    num_inference_steps = min(333, schedule.num_train_timesteps)
    denoiser = Denoiser(perfect_network(schedule, prediction_type), schedule, prediction_type, num_inference_steps)
    start = MEAN + math.hypot(STD, denoiser.sigmas[0]) * normal()  # the true latents at the first sigma
    latents = last(get_sampler(name)(denoiser, start, denoiser.sigmas, draw))
    assert latents.mean().item() == pytest.approx(MEAN, abs=1e-3)
    assert latents.std().item() == pytest.approx(STD, rel=0.01 if name in ("heun", "dpmpp_2m") else 0.04)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("schedule", "prediction_type"), [(TERMINAL, "v_prediction"), (FlowSchedule(), "flow_prediction")]
)
def test_unit_noise_is_the_right_start_when_no_signal_is_left(schedule, prediction_type, name):
    denoiser = Denoiser(perfect_network(schedule, prediction_type), schedule, prediction_type, 37)
    latents = last(get_sampler(name)(denoiser, denoiser.initial(normal()), denoiser.sigmas, draw))
    assert latents.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert latents.std().item() == pytest.approx(STD, rel=0.15)


@pytest.mark.parametrize("num_inference_steps", [4, 20, 100])
@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [
        (NoiseSchedule(), "epsilon"),
        (NoiseSchedule("linear", beta_start=1e-4, beta_end=0.02), "epsilon"),
        (NoiseSchedule("cosine"), "epsilon"),
        (NoiseSchedule("cosine", timestep_spacing="leading"), "epsilon"),
        (NoiseSchedule("cosine"), "v_prediction"),
    ],
    ids=str,
)
def test_an_objective_is_doubted_where_a_percent_of_error_spoils_the_samples(
    schedule, prediction_type, num_inference_steps
):
    def std(error: float) -> float:
        network = perfect_network(schedule, prediction_type)
        denoiser = Denoiser(lambda x, t: (1 + error) * network(x, t), schedule, prediction_type, num_inference_steps)
        return last(euler(denoiser, denoiser.initial(normal()), denoiser.sigmas)).std().item()

    is_spoilt = not 0.5 < std(0.01) / std(0.0) < 2
    doubt = DiffusionObjective(schedule, prediction_type).doubt(num_inference_steps)
    assert bool(doubt) == is_spoilt == (schedule == NoiseSchedule("cosine") and prediction_type == "epsilon")
    assert (
        not doubt
        or f"the first of {num_inference_steps} sampling steps goes from sigma 20,291 (alphas_cumprod 2.4e-09)" in doubt
    )


@pytest.mark.parametrize("num_inference_steps", [1, 2, 4, 10, 20, 50])
def test_the_mean_is_exact_at_any_number_of_steps(num_inference_steps):
    """Times told to the network and step sizes come from one array, so no step count makes the mean drift."""
    denoiser = Denoiser(lambda x, t: x, FlowSchedule(), "flow_prediction", num_inference_steps)
    start = MEAN + math.hypot(STD, denoiser.sigmas[0]) * normal()
    for name in ("euler", "heun", "dpmpp_2m"):
        latents = last(SAMPLERS[name](perfect_denoiser, start, denoiser.sigmas))
        assert latents.mean().item() == pytest.approx(MEAN, abs=1e-9)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_error_falls_with_the_order_of_the_solver(name, order):
    def error(num_inference_steps: int) -> float:
        sigmas = torch.logspace(1, -1, num_inference_steps + 1, dtype=torch.float64)
        start, end = MEAN + math.hypot(STD, 10.0) * normal(), MEAN + math.hypot(STD, 0.1) * normal()
        return (last(SAMPLERS[name](perfect_denoiser, start, sigmas)) - end).abs().max().item()

    errors = [error(num_inference_steps) for num_inference_steps in (20, 40, 80)]
    for coarse, fine in pairwise(errors):
        assert 0.8 * 2**order < coarse / fine < 1.4 * 2**order


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_fresh_noise_replaces_exactly_what_is_taken_away(eta):
    """With clean latents known, latents after each step have just the variance sigma_next^2."""
    sigmas = torch.tensor([10.0, 3.0, 1.0, 0.2])
    steps = ddim(lambda x, sigma: torch.full_like(x, MEAN), MEAN + 10 * normal(400_000), sigmas, noise_of_400_000, eta)
    for latents, sigma in zip(steps, sigmas[1:], strict=True):
        assert latents.std().item() == pytest.approx(sigma.item(), rel=5e-3)


def noise_of_400_000(step: int) -> Tensor:
    return normal(400_000, seed=1 + step)


def test_stochastic_samplers_draw_once_per_step_but_the_last():
    drawn = []
    denoiser = Denoiser(lambda x, t: x, NoiseSchedule(), "epsilon", 5)
    noise = torch.randn(2, 4, 3, 3)
    list(SAMPLERS["ddpm"](denoiser, noise, denoiser.sigmas, lambda step: drawn.append(step) or noise))
    assert drawn == [0, 1, 2, 3]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("schedule", "prediction_type"),
    [(NoiseSchedule(), "epsilon"), (TERMINAL, "v_prediction"), (FlowSchedule(), "flow_prediction")],
    ids=str,
)
def test_float32_latents_lose_nothing_to_large_sigmas(name, schedule, prediction_type):
    denoiser = Denoiser(perfect_network(schedule, prediction_type), schedule, prediction_type, 37)

    def sample(dtype: torch.dtype) -> Tensor:
        start = denoiser.initial(normal(100).to(dtype))
        return last(get_sampler(name)(denoiser, start, denoiser.sigmas, lambda step: normal(100, seed=1 + step)))

    single, double = sample(torch.float32), sample(torch.float64)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=2e-5, rtol=0)


def test_a_sampler_can_start_from_a_picture():
    denoiser = Denoiser(perfect_network(NoiseSchedule(), "epsilon"), NoiseSchedule(), "epsilon", 50)
    picture, remaining = MEAN + STD * normal(seed=5), denoiser.sigmas[35:]
    latents = last(SAMPLERS["dpmpp_2m"](denoiser, picture + remaining[0] * normal(), remaining))
    assert torch.corrcoef(torch.cat([picture, latents]))[0, 1] > 0.5
    assert latents.std().item() == pytest.approx(STD, rel=0.05)


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="ddim, ddpm, euler, heun or dpmpp_2m.*Did you mean 'dpmpp_2m'"):
        get_sampler("dpmpp2m")


def test_a_denoiser_refuses_a_prediction_type_that_does_not_fit():
    with pytest.raises(ConfigError, match="flow_prediction"):
        Denoiser(lambda x, t: x, FlowSchedule(), "epsilon", 10)

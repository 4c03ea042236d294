"""Whole trajectories equal those of diffusers' schedulers, with the same network, the same start and the same noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler
from torch import Tensor

from sdscratch.diffusion import Denoiser, FlowSchedule, NoiseSchedule, ddim, ddpm, dpmpp_2m, euler

SHAPE = (2, 4, 5, 3)
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def network(noisy: Tensor, timesteps: Tensor) -> Tensor:
    """Not linear in its input, and different at every timestep; any mistake in either shows in the result."""
    return 0.8 * torch.tanh(noisy + torch.cos(timesteps / 150).view(-1, 1, 1, 1)) + 0.1 * noisy


def noise(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(scheduler, num_inference_steps: int, start: Tensor, **step_settings) -> list[Tensor]:
    """diffusers' denoising loop: the latents after each step, in the scheduler's own scaling."""
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # the same values, without float32 arithmetic on them
    scheduler.set_timesteps(num_inference_steps)
    latents, trajectory = start, []
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(latents, t), t.expand(len(latents)))
        latents = scheduler.step(output, t, latents, **step_settings).prev_sample
        trajectory.append(latents)
    return trajectory


def assert_same(denoiser: Denoiser, ours, theirs: list[Tensor], theirs_in_karras_sigma: bool = False) -> None:
    """Compare step by step, as the network would see the latents; ours are in Karras' sigma."""
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        signal = denoiser.noise_schedule.scales_at(denoiser.sigmas[step + 1].item()).signal
        their = signal * their if theirs_in_karras_sigma else their
        torch.testing.assert_close(signal * our, their, atol=1e-6, rtol=1e-6, msg=lambda m, s=step: f"step {s}: {m}")


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 0), ("leading", 1), ("trailing", 0)])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim(eta, spacing, offset, prediction_type):
    scheduler = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        prediction_type=prediction_type,
        timestep_spacing=spacing,
        steps_offset=offset,
    )
    schedule = NoiseSchedule(timestep_spacing=spacing, steps_offset=offset)
    denoiser = Denoiser(network, schedule, prediction_type, 20)
    generator = torch.Generator().manual_seed(1)
    expected = theirs(scheduler, 20, noise(0), eta=eta, generator=generator)
    assert_same(denoiser, ddim(denoiser, denoiser.initial(noise(0)), denoiser.sigmas, in_turn(1), eta), expected)


def test_ddim_with_zero_terminal_snr():
    scheduler = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    denoiser = Denoiser(network, NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction", 20)
    expected = theirs(scheduler, 20, noise(0))
    assert_same(denoiser, ddim(denoiser, denoiser.initial(noise(0)), denoiser.sigmas), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("num_train_timesteps", [200, 1000])
def test_ddpm(num_train_timesteps, prediction_type):
    scheduler = DDPMScheduler(
        num_train_timesteps=num_train_timesteps,
        beta_end=0.02,
        clip_sample=False,
        prediction_type=prediction_type,
        timestep_spacing="trailing",
    )
    schedule = NoiseSchedule("linear", num_train_timesteps, beta_start=1e-4, beta_end=0.02)
    denoiser = Denoiser(network, schedule, prediction_type, 40)
    expected = theirs(scheduler, 40, noise(0), generator=torch.Generator().manual_seed(1))
    assert_same(denoiser, ddpm(denoiser, denoiser.initial(noise(0)), denoiser.sigmas, in_turn(1)), expected)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "offset"), [("leading", 1), ("trailing", 0)])
def test_euler(spacing, offset, prediction_type):
    scheduler = EulerDiscreteScheduler(
        **BETAS, prediction_type=prediction_type, timestep_spacing=spacing, steps_offset=offset
    )
    schedule = NoiseSchedule(timestep_spacing=spacing, steps_offset=offset)
    denoiser = Denoiser(network, schedule, prediction_type, 25)
    start = denoiser.initial(noise(0))
    expected = theirs(scheduler, 25, start)
    assert_same(denoiser, euler(denoiser, start, denoiser.sigmas), expected, theirs_in_karras_sigma=True)


@pytest.mark.parametrize("kind", ["scaled_linear", "cosine"])
@pytest.mark.parametrize(("sampler", "solver_order"), [(euler, 1), (dpmpp_2m, 2)])
@pytest.mark.parametrize("num_inference_steps", [3, 20, 30])
def test_dpm_solver(num_inference_steps, sampler, solver_order, kind):
    betas = BETAS if kind == "scaled_linear" else {"beta_schedule": "squaredcos_cap_v2"}
    scheduler = DPMSolverMultistepScheduler(
        **betas, prediction_type="v_prediction", timestep_spacing="trailing", solver_order=solver_order
    )
    denoiser = Denoiser(network, NoiseSchedule(kind), "v_prediction", num_inference_steps)
    expected = theirs(scheduler, num_inference_steps, noise(0))
    assert_same(denoiser, sampler(denoiser, denoiser.initial(noise(0)), denoiser.sigmas), expected)


@pytest.mark.parametrize(("sampler", "solver_order"), [(euler, 1), (dpmpp_2m, 2)])
@pytest.mark.parametrize("num_inference_steps", [1, 2, 7, 20, 50])
def test_flow_matching(num_inference_steps, sampler, solver_order):
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, solver_order=solver_order
    )
    denoiser = Denoiser(network, FlowSchedule(), "flow_prediction", num_inference_steps)
    expected = theirs(scheduler, num_inference_steps, noise(0))
    assert_same(denoiser, sampler(denoiser, denoiser.initial(noise(0)), denoiser.sigmas), expected)


def in_turn(seed: int):
    """Fresh noise, step after step from one generator, as diffusers' schedulers draw it."""
    generator = torch.Generator().manual_seed(seed)
    return lambda step: torch.randn(SHAPE, generator=generator, dtype=torch.float64)

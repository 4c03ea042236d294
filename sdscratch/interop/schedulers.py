"""Our noise schedules as diffusers' scheduler configs, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers

from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import ConfigError, DataError

BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}

# Which scheduler walks the timesteps of our spacing, whatever their number, by first-order steps: our euler, and ddim
# without noise. DDIMScheduler would do it for trailing only where the number of steps divides that of the timesteps.
WRITTEN: dict[str, dict[str, Any]] = {
    "trailing": {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 1},
    "leading": {"_class_name": "DDIMScheduler", "clip_sample": False, "set_alpha_to_one": True},
    "linspace": {"_class_name": "EulerDiscreteScheduler"},  # does not round its timesteps: nearly the same
}
READ = {  # the spacing that each has when its config names none
    "DDIMScheduler": "leading",
    "DDPMScheduler": "leading",
    "DEISMultistepScheduler": "linspace",
    "DPMSolverMultistepScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
    "EulerDiscreteScheduler": "linspace",
    "LMSDiscreteScheduler": "linspace",
    "PNDMScheduler": "leading",
    "UniPCMultistepScheduler": "linspace",
}


def scheduler_config(schedule: NoiseSchedule | FlowSchedule, prediction_type: PredictionType) -> dict[str, Any]:
    """The diffusers scheduler with which StableDiffusionPipeline draws the pictures of our `euler` and `ddim`.

    With timestep_spacing=leading the pipeline takes steps_offset for 1, whatever is written.
    """
    config = {"_diffusers_version": diffusers.__version__, "num_train_timesteps": schedule.num_train_timesteps}
    if isinstance(schedule, FlowSchedule):
        flow = {"prediction_type": prediction_type, "use_flow_sigmas": True, "flow_shift": 1.0}
        return {**WRITTEN["trailing"], **config, **flow, "steps_offset": 1}
    return {
        **WRITTEN[schedule.timestep_spacing],
        **config,
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "rescale_betas_zero_snr": schedule.rescale_zero_terminal_snr,
        "prediction_type": prediction_type,
        "timestep_spacing": schedule.timestep_spacing,
        # Read for leading only, but the pipeline warns of any other number.
        "steps_offset": schedule.steps_offset if schedule.timestep_spacing == "leading" else 1,
    }


def schedule_of(config: Mapping[str, Any]) -> tuple[NoiseSchedule | FlowSchedule, PredictionType]:
    """The schedule and prediction type behind a diffusers scheduler's config; how it solves is our samplers' business.

    Absent keys have the defaults of that scheduler. Raises DataError for what none of our schedules is.
    """
    name, steps = config.get("_class_name"), config.get("num_train_timesteps", 1000)
    prediction_type = config.get("prediction_type", "epsilon")
    if name not in READ:
        raise DataError(f"the scheduler is a {name}; expected one of {', '.join(READ)}")
    if config.get("trained_betas") is not None:
        raise DataError("the scheduler has trained_betas; expected a beta_schedule")
    schedule: NoiseSchedule | FlowSchedule
    try:
        if prediction_type == "flow_prediction":
            schedule = FlowSchedule(num_train_timesteps=steps)
        else:
            schedule = _noise_schedule(config, READ[name], steps)
        schedule.check_prediction_type(prediction_type)
    except (ConfigError, TypeError) as error:
        raise DataError(f"the scheduler's config is none that we know: {error}") from error
    return schedule, prediction_type


def _noise_schedule(config: Mapping[str, Any], default_spacing: str, num_train_timesteps: int) -> NoiseSchedule:
    kinds = {theirs: ours for ours, theirs in BETA_SCHEDULES.items()}
    beta_schedule = config.get("beta_schedule", "linear")
    if beta_schedule not in kinds:
        raise DataError(f"the scheduler's beta_schedule is {beta_schedule!r}; expected one of {', '.join(kinds)}")
    spacing = config.get("timestep_spacing", default_spacing)
    return NoiseSchedule(
        kind=kinds[beta_schedule],
        num_train_timesteps=num_train_timesteps,
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        rescale_zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        timestep_spacing=spacing,
        steps_offset=config.get("steps_offset", 0) if spacing == "leading" else 0,
    )

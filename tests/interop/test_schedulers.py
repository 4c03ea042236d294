"""Scheduler configs of diffusers: what we write, and what we make of published ones."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest

from sdscratch.diffusion import FlowSchedule, NoiseSchedule
from sdscratch.errors import DataError
from sdscratch.interop.schedulers import schedule_of, scheduler_config

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers

SD_1: dict[str, Any] = {  # as Stable Diffusion 1.4 and 1.5 were published
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}
SD_1_SCHEDULE = NoiseSchedule("scaled_linear", 1000, 0.00085, 0.012, timestep_spacing="leading", steps_offset=1)
OURS = [
    (NoiseSchedule(), "epsilon"),
    (NoiseSchedule("linear", 200, beta_start=1e-4, beta_end=0.02), "v_prediction"),
    (NoiseSchedule("cosine", timestep_spacing="linspace"), "epsilon"),
    (NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction"),
    (NoiseSchedule(timestep_spacing="leading", steps_offset=0), "epsilon"),
    (SD_1_SCHEDULE, "epsilon"),
    (FlowSchedule(), "flow_prediction"),
    (FlowSchedule(500), "flow_prediction"),
]


@pytest.mark.parametrize(("schedule", "prediction_type"), OURS)
def test_what_we_write_we_read_and_diffusers_takes_every_key(schedule, prediction_type):
    config = scheduler_config(schedule, prediction_type)
    assert schedule_of(config) == (schedule, prediction_type)
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    assert {name: scheduler.config[name] for name in config if not name.startswith("_")} == {
        name: value for name, value in config.items() if not name.startswith("_")
    }
    assert schedule_of({**scheduler.config, "_class_name": config["_class_name"]}) == (schedule, prediction_type)


@pytest.mark.parametrize("num_train_timesteps", [200, 1000])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_the_scheduler_visits_our_timesteps_for_every_number_of_steps(spacing, num_train_timesteps):
    schedule = NoiseSchedule(num_train_timesteps=num_train_timesteps, timestep_spacing=spacing)
    config = scheduler_config(schedule, "epsilon")
    scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    for steps in range(1, num_train_timesteps + 1):
        scheduler.set_timesteps(steps)
        theirs, ours = scheduler.timesteps.tolist(), schedule.grid(steps).timesteps.tolist()
        # By rounding, diffusers takes one step too many for some numbers, such as 61 and 103, of 1000.
        assert theirs == ours or theirs == [*ours, -1] and spacing == "trailing", steps


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("PNDMScheduler", {}, SD_1_SCHEDULE),
        ("DDIMScheduler", {"clip_sample": True}, SD_1_SCHEDULE),
        ("DDPMScheduler", {"variance_type": "fixed_small"}, SD_1_SCHEDULE),
        ("EulerDiscreteScheduler", {"timestep_spacing": "leading", "interpolation_type": "linear"}, SD_1_SCHEDULE),
        ("EulerDiscreteScheduler", {}, NoiseSchedule(timestep_spacing="linspace")),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}, NoiseSchedule()),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, NoiseSchedule(timestep_spacing="linspace")),
        ("LMSDiscreteScheduler", {}, NoiseSchedule(timestep_spacing="linspace")),
        ("UniPCMultistepScheduler", {}, NoiseSchedule(timestep_spacing="linspace")),
    ],
)
def test_published_schedulers_are_read_whatever_their_solver(name, changes, expected):
    assert schedule_of({**SD_1, "_class_name": name, **changes}) == (expected, "epsilon")
    v = schedule_of({**SD_1, "_class_name": name, **changes, "prediction_type": "v_prediction"})
    assert v == (expected, "v_prediction")


def test_absent_keys_have_the_defaults_of_diffusers():
    schedule, prediction_type = schedule_of({"_class_name": "DDIMScheduler"})
    assert prediction_type == "epsilon"
    assert schedule == NoiseSchedule("linear", 1000, 0.0001, 0.02, timestep_spacing="leading", steps_offset=0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler; expected one of DDIM"),
        ({"_class_name": None}, "expected one of"),
        ({"beta_schedule": "sigmoid"}, "'sigmoid'; expected one of scaled_linear"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"prediction_type": "sample"}, "'sample' is unknown"),
        ({"rescale_betas_zero_snr": True}, "epsilon cannot work with zero terminal SNR"),
        ({"timestep_spacing": "karras"}, "'karras' is unknown"),
        ({"num_train_timesteps": "many"}, "none that we know"),
        ({"beta_start": 2.0}, "make no schedule"),
    ],
)
def test_other_schedulers_are_refused(changes, said):
    with pytest.raises(DataError, match=said):
        schedule_of({**SD_1, **changes})

"""A model folder is a diffusers pipeline folder, plus `sdscratch.json`, which says where it comes from.

The folder appears whole: written beside its place, then renamed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from sdscratch import __version__
from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import DataError
from sdscratch.files import write_json
from sdscratch.models.encoders import FrozenEncoders, TextEncoder, fingerprint, load_text_encoder, load_vae
from sdscratch.models.tokenizer import save_tokenizer
from sdscratch.models.unet import UNet

WEIGHTS = "diffusion_pytorch_model.safetensors"
BETA_SCHEDULES = {"scaled_linear": "scaled_linear", "linear": "linear", "cosine": "squaredcos_cap_v2"}
PIPELINE = {
    "scheduler": ["diffusers", None],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


def save_model_folder(
    folder: Path,
    *,
    unet: UNet | None = None,
    vae: AutoencoderKL | None = None,
    text: TextEncoder | None = None,
    noise_schedule: NoiseSchedule | FlowSchedule | None = None,
    prediction_type: PredictionType | None = None,
    about: Mapping[str, Any],
) -> None:
    """Write what is given; with a UNet and all its company it is a whole StableDiffusionPipeline. Replaces `folder`."""
    partial = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    if vae is not None:
        vae.save_pretrained(partial / "vae")
        about = {**about, "vae_fingerprint": fingerprint(vae)}
    if text is not None:
        text.model.save_pretrained(partial / "text_encoder")
        save_tokenizer(text.tokenizer, partial / "tokenizer")
        if text.clip is not None:
            text.clip.save_pretrained(partial / "clip")
    if unet is not None:
        assert noise_schedule is not None and prediction_type is not None, "a UNet needs its schedule"
        scheduler = scheduler_config(noise_schedule, prediction_type)
        (partial / "scheduler").mkdir()
        write_json(partial / "scheduler" / "scheduler_config.json", scheduler)
        (partial / "unet").mkdir()
        write_json(partial / "unet" / "config.json", {**unet.config, "_diffusers_version": diffusers.__version__})
        weights = {name: tensor.detach().float().cpu().contiguous() for name, tensor in unet.state_dict().items()}
        save_file(weights, partial / "unet" / WEIGHTS, metadata={"format": "pt"})
        index = {**PIPELINE, "scheduler": ["diffusers", scheduler["_class_name"]]}
        header = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": diffusers.__version__}
        write_json(partial / "model_index.json", {**header, **index})
    write_json(partial / "sdscratch.json", {"format": 1, "sdscratch_version": __version__, **about})
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def load_model_folder(folder: Path) -> tuple[UNet, FrozenEncoders, NoiseSchedule | FlowSchedule, PredictionType, dict]:
    """UNet, encoders, schedule, prediction type and the content of sdscratch.json ({} in folders made elsewhere).

    Raises DataError when a part is missing or damaged.
    """
    try:
        config = json.loads((folder / "unet" / "config.json").read_text())
        scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
        unet = UNet.from_config(config)
        unet.load_state_dict(load_file(folder / "unet" / WEIGHTS), strict=True)
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} is no whole model folder: {Path(error.filename).relative_to(folder)} is missing"
        ) from error
    except Exception as error:
        raise DataError(f"{folder / 'unet'} cannot be read: {str(error).splitlines()[0]}") from error
    encoders = FrozenEncoders(load_vae(str(folder)), load_text_encoder([], str(folder)))
    noise_schedule, prediction_type = schedule_of(scheduler)
    about = folder / "sdscratch.json"
    return (
        unet.eval(),
        encoders,
        noise_schedule,
        prediction_type,
        json.loads(about.read_text()) if about.exists() else {},
    )


def scheduler_config(schedule: NoiseSchedule | FlowSchedule, prediction_type: PredictionType) -> dict[str, Any]:
    """The diffusers scheduler that samples as we do by default: DDIM, or Euler along the straight path."""
    if isinstance(schedule, FlowSchedule):
        return {
            "_class_name": "DPMSolverMultistepScheduler",
            "_diffusers_version": diffusers.__version__,
            "num_train_timesteps": schedule.num_train_timesteps,
            "prediction_type": "flow_prediction",
            "use_flow_sigmas": True,
            "flow_shift": 1.0,
            "solver_order": 1,
        }
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": diffusers.__version__,
        "num_train_timesteps": schedule.num_train_timesteps,
        "beta_schedule": BETA_SCHEDULES[schedule.kind],
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "rescale_betas_zero_snr": schedule.rescale_zero_terminal_snr,
        "prediction_type": prediction_type,
        "timestep_spacing": schedule.timestep_spacing,
        "steps_offset": schedule.steps_offset,
        "clip_sample": False,
        "set_alpha_to_one": True,
    }


def schedule_of(config: Mapping[str, Any]) -> tuple[NoiseSchedule | FlowSchedule, PredictionType]:
    """The schedule and prediction type that a diffusers scheduler's configuration describes. Raises DataError for others."""
    if config.get("prediction_type") == "flow_prediction":
        return FlowSchedule(num_train_timesteps=config.get("num_train_timesteps", 1000)), "flow_prediction"
    kinds = {theirs: ours for ours, theirs in BETA_SCHEDULES.items()}
    beta_schedule = config.get("beta_schedule", "linear")
    if beta_schedule not in kinds:
        raise DataError(f"beta_schedule={beta_schedule!r} is unknown; expected one of {', '.join(kinds)}")
    schedule = NoiseSchedule(
        kind=kinds[beta_schedule],
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        beta_start=config.get("beta_start", 0.0001),
        beta_end=config.get("beta_end", 0.02),
        rescale_zero_terminal_snr=config.get("rescale_betas_zero_snr", False),
        timestep_spacing=config.get("timestep_spacing", "leading"),
        steps_offset=config.get("steps_offset", 0),
    )
    return schedule, config.get("prediction_type", "epsilon")

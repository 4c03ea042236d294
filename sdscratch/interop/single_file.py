"""One safetensors file with UNet, VAE and text encoder under CompVis' names, as programs for Stable Diffusion 1.x read it.

The file says nothing of sizes, tokens or schedules, and such programs take those of SD 1.x for granted. What is different in a
model stands beside its file, in the folder STEM.configs: a pipeline folder without weights.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping
from functools import partial as bind
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import CannotWriteError, DataError, check_choice
from sdscratch.files import halves, remove_halves, replace_folder, write_atomically, write_json
from sdscratch.interop import compvis_keys
from sdscratch.interop.diffusers_folder import ABOUT, Model, read_about, read_settings, reading, write_settings
from sdscratch.interop.schedulers import schedule_of
from sdscratch.interop.weight_files import check_finite, tensors_of
from sdscratch.models.encoders import FrozenEncoders, TextEncoder
from sdscratch.models.latent_scale import with_scaling_factor
from sdscratch.models.pretrained import without_commentary
from sdscratch.models.released_unet import ReleasedUNet
from sdscratch.models.tokenizer import load_tokenizer, save_tokenizer
from sdscratch.models.unet_kinds import unet_from_config
from sdscratch.models.weights import misfits

SCALING_FACTOR = 0.18215
"""Of the VAE of every SD 1.x model, to those who read such files."""

SD1X_UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": 64,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SD1X_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
SD1X_TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}

V_PREDICTION, ZERO_TERMINAL_SNR = "v_pred", "ztsnr"
"""Empty tensors by which programs know what else they would have to be told."""

IGNORED = {
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "logvar"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    *(V_PREDICTION, ZERO_TERMINAL_SNR, "lvlb_weights", compvis_keys.TEXT + "embeddings.position_ids"),
}
IGNORED_BELOW = ("model_ema.", "first_stage_model.loss.", "first_stage_model.model_ema.")
"""What files of training hold beside the networks: schedules, which configs give, averages that were not asked for, a loss."""


def is_single_file(content: Mapping[str, Any]) -> bool:
    """Whether a file's content looks like this kind."""
    inner = content.get("state_dict", content)
    names = inner if isinstance(inner, Mapping) else ()
    return any(isinstance(name, str) and name.startswith(compvis_keys.UNET) for name in names)


def configs_beside(path: Path) -> Path:
    """Where what a single file does not say is kept."""
    return path.with_name(f"{path.stem}.configs")


def clear_place(path: Path) -> None:
    """Remove what an export to this file has left that was killed: its half, and the configs that it had put beside that."""
    if not path.exists() and halves(path.parent, path.name):
        shutil.rmtree(configs_beside(path), ignore_errors=True)
    remove_halves(path.parent, path.name)
    remove_halves(path.parent, configs_beside(path).name)


def write_single_file(
    path: Path,
    model: Model,
    dtype: torch.dtype = torch.float32,
    more: Callable[[Path], object] = lambda folder: None,
) -> None:
    """Write the model and the configs beside it, where there is neither yet; the file itself gets its name last.

    The VAE's scaling_factor becomes the usual one. A ReleasedUNet, which no such program knows, is written alone, under the
    names of its release. more: writes what else is to be in the folder of configs.
    Raises CannotWriteError when the disk is full, the place not writable, or taken by another process meanwhile, DataError
    for weights too large for the dtype.
    """
    configs = configs_beside(path)
    if isinstance(model.unet, ReleasedUNet):
        tensors = dict(model.unet.state_dict())
    else:
        vae = with_scaling_factor(model.encoders.vae, SCALING_FACTOR)
        model = model._replace(encoders=FrozenEncoders(vae, model.encoders.text))
        tensors = _by_their_names(model)
        marks = _markers(model.noise_schedule, model.prediction_type)
        tensors |= {name: torch.zeros(0) for name, holds in marks.items() if holds}
    plain = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in tensors.items()}
    check_finite(plain, f"in {dtype}")

    def write_configs(folder: Path) -> None:
        write_settings(folder, model.unet.config, model.noise_schedule, model.prediction_type)
        with without_commentary():
            model.encoders.vae.save_config(folder / "vae")
            model.encoders.text.model.config.save_pretrained(folder / "text_encoder")
        save_tokenizer(model.encoders.text.tokenizer, folder / "tokenizer")
        write_json(folder / ABOUT, model.about)
        more(folder)

    def rename(temporary: Path, path: Path) -> None:
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            replace_folder(configs, write_configs, only_new=True)
        except OSError as error:
            reason = error.strerror or error
            raise CannotWriteError(f"cannot write {configs}: {reason}. Choose another name or folder.") from error
        try:
            os.replace(temporary, path)
        except BaseException:  # configs of no file would be in the way
            shutil.rmtree(configs, ignore_errors=True)
            raise

    clear_place(path)
    content = save(plain, metadata={"format": "pt"})
    write_atomically(path, lambda file: file.write(content), "export", rename)


def read_single_file(
    content: Mapping[str, Any],
    where: str,
    weights: str = "ema",
    configs: Path | None = None,
    tokenizer: Callable[[], CLIPTokenizer] | None = None,
    partial: bool = False,
) -> tuple[Model, list[str]]:
    """The model in a file's content, in float32, and what of it was left out (nothing, unless `partial`).

    where: how messages begin. weights: the average, where the file has one beside the live weights, or those. configs: a
    pipeline folder that gives what the file does not say; None stands for SD 1.x, with `tokenizer`.
    Raises DataError that names tensors, by their names in the file, which are missing, unexpected or of another shape.
    """
    check_choice("weights", weights, ("ema", "raw"))
    tensors = _with_usual_names(tensors_of(content.get("state_dict", content), where))
    model = _built(configs, tokenizer, tensors)
    averages = weights == "ema" and any(name.startswith("model_ema.diffusion_model") for name in tensors)

    expected = _by_their_names(model)
    sources = {name: name for name in expected}
    if averages:
        sources |= {name: compvis_keys.average_name(name) for name in expected if name.startswith(compvis_keys.UNET)}
    found = {name: _as_there(name, tensors[source]) for name, source in sources.items() if source in tensors}
    rest = {name: tensor for name, tensor in tensors.items() if name not in expected and not _is_ignored(name)}
    problems = misfits(found | rest, expected)
    if problems and not partial:
        raise DataError(f"{where} does not fit: {'; '.join(problems)}. partial=true takes what does")
    fitting = {name: tensor for name, tensor in found.items() if tensor.shape == expected[name].shape}
    check_finite(fitting, where)
    if not fitting:
        raise DataError(f"{where} does not fit: none of its {len(tensors)} tensors has a place in this model")

    for network, names in _named(model):
        own = network.state_dict()
        taken = {ours: fitting[theirs].reshape(own[ours].shape) for ours, theirs in names.items() if theirs in fitting}
        network.load_state_dict(taken, strict=False)
    return model, problems


def _named(model: Model) -> list[tuple[nn.Module, dict[str, str]]]:
    """UNet, VAE and text encoder, each with its names -> theirs."""
    unet, vae, text = model.unet, model.encoders.vae, model.encoders.text.model
    return [
        (unet, compvis_keys.unet_names(unet.state_dict(), unet.config)),
        (vae, compvis_keys.vae_names(vae.state_dict(), len(vae.config.block_out_channels))),
        (text, compvis_keys.text_names(text.state_dict())),
    ]


def _by_their_names(model: Model) -> dict[str, Tensor]:
    """All tensors, as they are called and shaped there."""
    return {
        names[ours]: _as_there(names[ours], weight)
        for network, names in _named(model)
        for ours, weight in network.state_dict().items()
    }


def _as_there(name: str, weight: Tensor) -> Tensor:
    """The VAE's attention has 1x1 convolutions there, and linear layers here; files of either kind are about."""
    is_projection = name.startswith(compvis_keys.VAE) and ".attn_1." in name and weight.ndim == 2
    return weight[:, :, None, None] if is_projection else weight


def _with_usual_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Some files leave `text_model` out of the names of the text encoder."""
    tower, usual = compvis_keys.TEXT.removesuffix("text_model."), compvis_keys.TEXT
    return {
        usual + name.removeprefix(tower) if name.startswith(tower) and not name.startswith(usual) else name: tensor
        for name, tensor in tensors.items()
    }


def _is_ignored(name: str) -> bool:
    return name in IGNORED or name.startswith(IGNORED_BELOW)


def _markers(schedule: NoiseSchedule | FlowSchedule, prediction_type: PredictionType) -> dict[str, bool]:
    return {
        V_PREDICTION: prediction_type == "v_prediction",
        ZERO_TERMINAL_SNR: isinstance(schedule, NoiseSchedule) and schedule.rescale_zero_terminal_snr,
    }


def _built(configs: Path | None, tokenizer: Callable[[], CLIPTokenizer] | None, tensors: Mapping[str, Tensor]) -> Model:
    """The networks, with random weights, and all around them."""
    schedule: NoiseSchedule | FlowSchedule
    about: dict[str, Any] = {}
    if configs is None:
        unet_config, vae_config, text_config = SD1X_UNET, SD1X_VAE, SD1X_TEXT
        rescaled = ZERO_TERMINAL_SNR in tensors
        spacing = {"timestep_spacing": "trailing"} if rescaled else {"timestep_spacing": "leading", "steps_offset": 1}
        schedule = NoiseSchedule(rescale_zero_terminal_snr=rescaled, **spacing)
        prediction_type: PredictionType = "v_prediction" if V_PREDICTION in tensors else "epsilon"
        read_tokens = tokenizer
    else:
        with reading(configs / "unet"):
            unet_config = read_settings(configs / "unet/config.json")
        with reading(configs / "vae"):
            vae_config = read_settings(configs / "vae/config.json")
        with reading(configs / "text_encoder"):
            text_config = read_settings(configs / "text_encoder/config.json")
        with reading(configs / "scheduler"):
            schedule, prediction_type = schedule_of(read_settings(configs / "scheduler/scheduler_config.json"))
        about = read_about(configs)
        read_tokens = bind(load_tokenizer, configs / "tokenizer")
        for name, holds in _markers(schedule, prediction_type).items():
            if name in tensors and not holds:
                raise DataError(f"the file is marked {name}, but the scheduler in {configs} is of another kind")
    assert read_tokens is not None, "SD 1.x needs the tokenizer of its CLIP"
    tokens = read_tokens()
    if unet_config.get("_class_name") == ReleasedUNet.__name__:
        raise DataError(f"{configs} describes a ReleasedUNet, which has no such names: expected configs of SD 1.x kind")
    place = configs or Path("SD 1.x")
    with reading(place / "unet"):
        unet = unet_from_config(unet_config)
    with reading(place / "vae"), without_commentary():
        vae = AutoencoderKL.from_config(vae_config)
    with reading(place / "text_encoder"), without_commentary():
        text = TextEncoder(CLIPTextModel(CLIPTextConfig.from_dict(text_config)), tokens)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)
    return Model(unet.eval(), FrozenEncoders(vae, text), schedule, prediction_type, about)

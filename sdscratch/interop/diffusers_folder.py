"""A model folder is a diffusers pipeline folder, plus `sdscratch.json`, which says where it comes from.

    model_index.json   unet/   vae/   text_encoder/   tokenizer/   scheduler/   (clip/)   sdscratch.json

Weights are safetensors, configs plain JSON. The folder appears whole: written beside its place, then renamed.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
from diffusers import AutoencoderKL
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sdscratch import __version__
from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import CannotWriteError, DataError
from sdscratch.files import check_file, read_bytes, replace_folder, write_json
from sdscratch.interop.schedulers import schedule_of, scheduler_config
from sdscratch.interop.weight_files import check_finite
from sdscratch.models.encoders import (
    FrozenEncoders,
    TextEncoder,
    downsampling_factor,
    fingerprint,
    load_text_encoder,
    load_vae,
)
from sdscratch.models.pretrained import without_commentary
from sdscratch.models.released_unet import ReleasedUNet
from sdscratch.models.tokenizer import save_tokenizer
from sdscratch.models.unet_kinds import AnyUNet, unet_from_config
from sdscratch.run_folder import RunFolder

INDEX, ABOUT = "model_index.json", "sdscratch.json"
UNET_CONFIG, SCHEDULER = Path("unet/config.json"), Path("scheduler/scheduler_config.json")
UNET_WEIGHTS = Path("unet/diffusion_pytorch_model.safetensors")
PIPELINE = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "safety_checker": [None, None],
    "requires_safety_checker": False,
}


class Model(NamedTuple):
    """What a model folder holds. about: the content of sdscratch.json, {} in folders made elsewhere."""

    unet: AnyUNet
    encoders: FrozenEncoders
    noise_schedule: NoiseSchedule | FlowSchedule
    prediction_type: PredictionType
    about: dict[str, Any]


def save_model_folder(
    folder: Path,
    *,
    unet: AnyUNet | None = None,
    vae: AutoencoderKL | None = None,
    text: TextEncoder | None = None,
    noise_schedule: NoiseSchedule | FlowSchedule | None = None,
    prediction_type: PredictionType | None = None,
    about: Mapping[str, Any],
    more: Callable[[Path], object] = lambda folder: None,
    only_new: bool = False,
) -> None:
    """Write the parts that are given, in place of `folder`; with a UNet and all its company it is a whole pipeline.

    Networks are written in the dtype that they have. more: writes what else is to be in the folder, such as a README.
    only_new: not in place of what another process has written there meanwhile.
    about: plain JSON for sdscratch.json. Its `sampling.size`, in pixels, becomes the size that pipelines draw unasked.
    Raises CannotWriteError when the disk is full or the place not writable; what was in `folder` is then still there.
    """
    about = {"format": 1, "sdscratch_version": __version__, **about}

    def write(partial: Path) -> None:
        with without_commentary():
            if vae is not None:
                about["vae_fingerprint"] = fingerprint(vae)
                vae.save_pretrained(partial / "vae")
            if text is not None:
                _save_text(partial, text)
        if unet is not None:
            assert noise_schedule is not None and prediction_type is not None, "a UNet needs its schedule"
            config = dict(unet.config)
            if vae is not None and "sampling" in about:
                config["sample_size"] = about["sampling"]["size"] // downsampling_factor(vae)
            write_settings(partial, config, noise_schedule, prediction_type)
            weights = {name: tensor.detach().cpu().contiguous() for name, tensor in unet.state_dict().items()}
            save_file(weights, partial / UNET_WEIGHTS, metadata={"format": "pt"})
        write_json(partial / ABOUT, about)
        more(partial)

    try:
        replace_folder(folder, write, only_new)
    except (OSError, SafetensorError) as error:
        raise CannotWriteError(f"cannot write {folder}: {error}. Free some space or choose another folder.") from error


def save_model(folder: Path, model: Model, more: Callable[[Path], object] = lambda folder: None) -> None:
    """Write a whole model, as save_model_folder does, where there is nothing yet."""
    save_model_folder(
        folder,
        unet=model.unet,
        vae=model.encoders.vae,
        text=model.encoders.text,
        noise_schedule=model.noise_schedule,
        prediction_type=model.prediction_type,
        about=model.about,
        more=more,
        only_new=True,
    )


def write_settings(
    folder: Path,
    unet_config: Mapping[str, Any],
    noise_schedule: NoiseSchedule | FlowSchedule,
    prediction_type: PredictionType,
) -> None:
    """What makes a folder a pipeline, beside its parts: the index, the scheduler's config and the UNet's."""
    write_json(folder / UNET_CONFIG, {**unet_config, "_diffusers_version": diffusers.__version__})
    scheduler = scheduler_config(noise_schedule, prediction_type)
    write_json(folder / SCHEDULER, scheduler)
    index = {**PIPELINE, "scheduler": ["diffusers", scheduler["_class_name"]]}
    if unet_config["_class_name"] == ReleasedUNet.__name__:
        index["unet"] = ["sdscratch.models", ReleasedUNet.__name__]  # diffusers then says that it has no such network
    write_json(folder / INDEX, index)


def find_model_folder(model: str | Path) -> Path:
    """The model folder that is meant by a run, a model folder, or a hub id whose files are in the local cache.

    Raises DataError when there is none, saying what is there instead.
    """
    run = RunFolder(model)
    folder = run.model_folder if run.model_folder.is_dir() else run.path
    wanted = f"expected a run, or a folder with {INDEX}"
    if not folder.exists():
        try:
            return Path(snapshot_download(str(model), local_files_only=True))
        except (OSError, ValueError) as error:  # not in the cache, or no hub id
            raise DataError(f"there is no model {model}: {wanted}, or a hub id already downloaded") from error
    if not (folder / INDEX).is_file():
        parts = [part for part in ("unet", "vae", "text_encoder") if (folder / part).is_dir()]
        found = f"It holds {' and '.join(parts) or 'nothing of a model'}."
        if folder == run.path and run.holds_a_run():
            found = f"Its run has not finished: `sdscratch resume {model}`, or name one of its checkpoints."
        raise DataError(f"{model} is no whole model: {wanted}. {found}")
    return folder


def load_model_folder(folder: Path) -> Model:
    """Read a whole pipeline, ours or one published in that layout, onto the CPU in float32.

    Raises DataError in one line, naming the part that is missing, damaged, or none that we can run.
    """
    for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler"):
        if not (folder / part).is_dir():
            raise DataError(f"{folder} is no whole model folder: {part}/ is missing")
    with reading(folder / "unet"):
        unet = unet_from_config(read_settings(folder / UNET_CONFIG))
        check_file(folder / UNET_WEIGHTS)
        unet.load_state_dict(load_file(folder / UNET_WEIGHTS), strict=True)
    with reading(folder / "scheduler"):
        noise_schedule, prediction_type = schedule_of(read_settings(folder / SCHEDULER))
    about = read_about(folder)
    vae = load_vae(str(folder))
    with reading(folder / "tokenizer"):
        text = load_text_encoder([], str(folder))
    model = Model(unet.eval(), FrozenEncoders(vae, text), noise_schedule, prediction_type, about)
    check_sizes(model, str(folder))
    scale = vae.config.scaling_factor
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise DataError(f"{folder / 'vae'} has the scaling_factor {scale}; expected a number above 0")
    for part, network in (("unet", unet), ("vae", vae), ("text_encoder", text.model)):
        check_finite(network.state_dict(), str(folder / part))
    return model


def check_sizes(model: Model, where: str) -> None:
    """Raise DataError, which begins with `where`, unless the UNet is one for these encoders."""
    for name, expected in model.encoders.unet_sizes.items():
        if model.unet.config[name] != expected:
            raise DataError(
                f"{where}: {name} of its unet is {model.unet.config[name]}, but its vae and text_encoder need {expected}: "
                "they are not of one model"
            )


def read_about(folder: Path) -> dict[str, Any]:
    """The content of sdscratch.json, {} in folders made elsewhere."""
    with reading(folder / ABOUT):
        about = read_settings(folder / ABOUT) if (folder / ABOUT).exists() else {}
        for name in ("sampling", "imported", "posthoc_ema"):
            if not isinstance(about.get(name, {}), dict):
                raise DataError(f"its {name} is {about[name]!r}; expected names and values")
        return about


def _save_text(folder: Path, text: TextEncoder) -> None:
    text.model.save_pretrained(folder / "text_encoder")
    save_tokenizer(text.tokenizer, folder / "tokenizer")
    if text.clip is not None:
        text.clip.save_pretrained(folder / "clip")


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    content = json.loads(read_bytes(path))
    if not isinstance(content, dict):
        raise DataError(f"{path} holds no JSON object")
    return content


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever damaged files raise into a line that begins with the path."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DataError) and str(error).startswith(str(path.parent)):
            raise
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        raise DataError(f"{path} cannot be read: {reason}") from error

"""A model out of a run's checkpoint: the network of one step, with all else from the run around it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from sdscratch.checkpoint_file import Checkpoint
from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import DataError
from sdscratch.files import read_bytes
from sdscratch.interop.diffusers_folder import Model, check_sizes, load_model_folder, reading
from sdscratch.models.encoders import FrozenEncoders, TextEncoder, fingerprint, load_text_encoder, load_vae
from sdscratch.models.released_unet import ReleasedUNet
from sdscratch.models.unet import UNet
from sdscratch.models.unet_kinds import AnyUNet, unet_from_config
from sdscratch.models.weights import misfits
from sdscratch.run_folder import RunFolder

NAME = re.compile(r"step_\d+\.ckpt")
PREFIX = "network."  # of the trained network in a checkpoint's state dict
NETWORKS = {kind.__name__: kind for kind in (UNet, ReleasedUNet)}


def run_around(path: Path) -> RunFolder | None:
    """The run whose checkpoint `path` names, RUN/checkpoints/step_00001000.ckpt; None where it names something else."""
    is_one = NAME.fullmatch(path.name) and path.parent.name == "checkpoints"
    return RunFolder(path.parent.parent) if is_one else None


def checkpoint_of(run: RunFolder, path: Path) -> Checkpoint:
    """The checkpoint at `path`. Raises DataError unless it is as it was written."""
    found = next((checkpoint for checkpoint in run.checkpoints() if checkpoint.path == path), None)
    if found is not None and found.is_intact():
        return found
    if found is not None and path.is_file():  # else its run has gone on meanwhile, and removed it
        raise DataError(f"{path} is damaged: its checksum does not fit. Choose another checkpoint of {run.path}")
    if path.is_file():
        raise DataError(
            f"{path} lacks the side-car {path.name}.json that vouches for it: restore that, or choose another"
        )
    steps = ", ".join(str(checkpoint.step) for checkpoint in run.checkpoints()) or "none"
    raise DataError(f"there is no checkpoint {path}; {run.path} has those of steps: {steps}")


def checkpoint_model(checkpoint: Checkpoint) -> Model:
    """The averaged network of a checkpoint as a whole model. Raises DataError where the run has no such thing.

    What was frozen comes from the run's model folder, or, before the run is finished, from where it was read for training.
    """
    content, run = checkpoint.load(mapped=True), RunFolder(checkpoint.path.parent.parent)
    with reading(checkpoint.path):
        settings = content.get("settings", {})
        stage = str(settings.get("stage._target_", "LatentDiffusion")).rpartition(".")[2]
        if stage != "LatentDiffusion":
            raise DataError(f"{checkpoint.path} is a checkpoint of stage {stage}: expected one of stage=diffusion")
    finished = run.model_folder.is_dir()
    model = load_model_folder(run.model_folder) if finished else _as_configured(run, settings)
    about = {"run": run.path.name, **model.about, "weights": "ema"}
    about |= {"step": checkpoint.step, "samples_seen": checkpoint.samples_seen}
    return model._replace(unet=checkpoint_unet(checkpoint, "ema", model.unet), about=about)


def checkpoint_unet(checkpoint: Checkpoint, weights: str, like: AnyUNet) -> AnyUNet:
    """The averaged (ema) network of a checkpoint, or the one as training left it (raw), in float32 and eval mode."""
    content = checkpoint.load(mapped=True)
    unet = unet_from_config(like.config).eval()
    with reading(checkpoint.path):
        found: Mapping[str, Tensor] = content["ema"]["weights"]
        if weights == "raw":
            found = {name.removeprefix(PREFIX): tensor for name, tensor in content["state_dict"].items()}
        if problems := misfits(found, unet.state_dict()):
            raise DataError(f"{checkpoint.path} holds another network than its run's: {'; '.join(problems)}")
        unet.load_state_dict(found, strict=True)
    return unet


def _as_configured(run: RunFolder, settings: Mapping[str, Any]) -> Model:
    """By the run's config.yaml, with encoders of the fingerprints that stand in the checkpoint's settings."""
    with reading(run.config_file):
        recipe = yaml.safe_load(read_bytes(run.config_file))
        kind = NETWORKS[recipe["model"]["_target_"].rpartition(".")[2]]
        unet = kind(**_arguments(recipe["model"])).eval()
        noise_schedule, prediction_type = _schedule(recipe["objective"])
        about = {"sampling": _arguments(recipe["sampler"])}
    vae, text = _vae(run, recipe["vae"]), _text_encoder(run, recipe["text_encoder"])
    for part, found in (("vae", fingerprint(vae)), ("text_encoder", text.fingerprint)):
        if (expected := settings.get(f"{part}.fingerprint", found)) != found:
            raise DataError(
                f"{recipe[part]['path']} is not the {part} that {run.path} was trained with: its fingerprint is {found}, "
                f"expected {expected}. Put that back, or finish the run"
            )
    model = Model(unet, FrozenEncoders(vae, text), noise_schedule, prediction_type, about)
    check_sizes(model, str(run.config_file))
    return model


def _schedule(objective: Mapping[str, Any]) -> tuple[NoiseSchedule | FlowSchedule, PredictionType]:
    given = _arguments(objective.get("noise_schedule", {}))
    if objective["_target_"].endswith(".FlowMatching"):
        return FlowSchedule(**given), "flow_prediction"
    return NoiseSchedule(**given), objective["prediction_type"]


def _vae(run: RunFolder, node: Mapping[str, Any]) -> Any:
    return load_vae(**_trained(run, "vae", node))


def _text_encoder(run: RunFolder, node: Mapping[str, Any]) -> TextEncoder:
    return load_text_encoder([], **_trained(run, "text_encoder", node))


def _trained(run: RunFolder, part: str, node: Mapping[str, Any]) -> dict[str, Any]:
    if "path" not in node:
        raise DataError(
            f"the {part} of {run.path} has random weights, which are in no file before the run is finished: "
            f"`sdscratch resume {run.path}`"
        )
    return _arguments(node)


def _arguments(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node of a configuration without what is Hydra's."""
    return {name: value for name, value in node.items() if not name.startswith("_")}

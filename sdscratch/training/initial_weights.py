"""First weights from another run or a model folder, instead of random ones."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sdscratch.checkpoint_file import Checkpoint
from sdscratch.errors import ConfigError, DataError, RunFolderError, check_choice
from sdscratch.interop.diffusers_folder import find_model_folder, read_about
from sdscratch.models.weights import misfits
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage

CHOICES = {"weights": ("ema", "raw"), **dict.fromkeys(("optimizer", "ema", "samples_seen"), ("reset", "keep"))}
WEIGHT_FILES = ("diffusion_pytorch_model.safetensors", "model.safetensors")


@dataclass(frozen=True)
class InitialWeights:
    """What a new run takes from `init_from`: a run (its newest intact checkpoint), a checkpoint, or a model folder.

    weights: "ema" or "raw". optimizer, ema: "keep" takes along the optimizer's moments, or the average with its counter;
    "reset" starts the optimizer anew, or the average from the weights taken. samples_seen: "keep" counts on from those that
    the source had seen. A model folder has its ema weights only.
    """

    weights: Literal["ema", "raw"] = "ema"
    optimizer: Literal["reset", "keep"] = "reset"
    ema: Literal["reset", "keep"] = "reset"
    samples_seen: Literal["reset", "keep"] = "reset"

    def __post_init__(self) -> None:
        check_choices("init", vars(self))

    def give(self, module: Stage, source: str) -> dict[str, Any]:
        """Put the weights into a module that has not been trained yet. Returns what lineage.json is to say of them.

        Raises ConfigError where they are of another network, naming tensors, or are not to be had from `source`.
        """
        if checkpoint := _checkpoint(Path(source)):
            origin = {"step": checkpoint.step, "samples_seen": checkpoint.samples_seen, "sha256": checkpoint.sha256}
            self._give_checkpoint(module, source, checkpoint.load(mapped=True))
            if self.samples_seen == "keep":
                module.samples_offset = checkpoint.samples_seen
        else:
            origin = self._give_model(module, source)
        return {"from": source, **origin, "weights": self.weights, "optimizer": self.optimizer, "ema": self.ema}

    def _give_checkpoint(self, module: Stage, source: str, content: Mapping[str, Any]) -> None:
        raw = {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}
        _load(module, content["ema"]["weights"] if self.weights == "ema" else raw, source)
        if self.ema == "keep":
            module.ema.load_state_dict(content["ema"])
        if self.optimizer == "keep":
            kinds = [settings.get("optimizer._target_") for settings in (content.get("settings", {}), module.settings)]
            if kinds[0] != kinds[1]:
                raise ConfigError(f"{source} was trained with {kinds[0]}, not {kinds[1]}: set init.optimizer=reset")
            module.first_moments = deepcopy(content["optimizer_states"][0]["state"])

    def _give_model(self, module: Stage, source: str) -> dict[str, Any]:
        if self != InitialWeights():
            raise ConfigError(
                f"{source} is a model folder, with ema weights and nothing else. init.weights=raw, init.optimizer=keep, "
                "init.ema=keep and init.samples_seen=keep need a run or a checkpoint"
            )
        folder = _part(source, module.component)
        file = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
        if file is None:
            raise DataError(f"{folder} holds none of {', '.join(WEIGHT_FILES)}")
        try:
            weights = load_file(file)
        except SafetensorError as error:
            raise DataError(f"{file} is damaged: {error}") from error
        _load(module, weights, source)
        with file.open("rb") as opened:
            sha256 = file_digest(opened, "sha256").hexdigest()
        about = read_about(folder.parent)
        return {"step": about.get("step"), "samples_seen": about.get("samples_seen"), "sha256": sha256}


def check_choices(section: str, chosen: Mapping[str, object]) -> None:
    """Raise ConfigError for what InitialWeights could not do, under the name of the section that says so."""
    for name, choice in chosen.items():
        check_choice(f"{section}.{name}", choice, CHOICES[name])


def tokenizer_folder(source: str) -> Path:
    """Where `init_from` keeps the tokenizer that its text encoder learnt with. Raises DataError where it has none."""
    path = Path(source)
    run = path.parent.parent if path.suffix == ".ckpt" else path
    parents = (run, RunFolder(run).model_folder) if run.exists() else (find_model_folder(source),)
    folders = [parent / "tokenizer" for parent in parents]
    for folder in folders:
        if folder.is_dir():
            return folder
    raise DataError(
        f"init_from={source} has no tokenizer: expected {' or '.join(map(str, folders))}. A new text encoder would learn "
        "another one, to which its weights mean nothing"
    )


def _load(module: Stage, weights: Mapping[str, Tensor], source: str) -> None:
    if found := misfits(weights, module.network.state_dict()):
        raise ConfigError("\n  ".join([f"init_from={source} holds another network than the one configured:", *found]))
    module.network.load_state_dict(weights, strict=True)
    module.ema.network.load_state_dict(weights, strict=True)


def _checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint that is meant, intact; None where `path` is no run and no checkpoint."""
    if path.suffix != ".ckpt":
        return RunFolder(path).newest_intact_checkpoint()
    if not path.exists():
        raise RunFolderError(
            f"init_from={path}: there is no such file. `sdscratch checkpoints RUN` lists those of a run"
        )
    for checkpoint in RunFolder(path.parent.parent).checkpoints():
        if checkpoint.path == path and checkpoint.is_intact():
            return checkpoint
    raise RunFolderError(f"init_from={path} is damaged, or lacks the side-car {path.name}.json that vouches for it")


def _part(source: str, component: str) -> Path:
    for folder in (RunFolder(source).model_folder, Path(source)):
        if (folder / component).is_dir():
            return folder / component
    folder = find_model_folder(source)
    if not (folder / component).is_dir():
        raise DataError(f"init_from={source} holds no {component}/")
    return folder / component

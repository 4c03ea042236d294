"""`sdscratch import SOURCE OUT`: a model made elsewhere as a model folder."""

from __future__ import annotations

import os
from pathlib import Path

from omegaconf import DictConfig

from sdscratch.commands.data_paths import optional, out_folder, required
from sdscratch.console import warn
from sdscratch.errors import CannotWriteError, ConfigError
from sdscratch.interop.diffusers_folder import Model, find_model_folder, load_model_folder, save_model
from sdscratch.interop.hub import fetch
from sdscratch.interop.model_file import ModelFile
from sdscratch.interop.run_checkpoint import run_around


def run(cfg: DictConfig) -> None:
    """Read `path`, whole and strictly, and write the model folder `out`."""
    out = out_folder(cfg)
    require_free(out)
    path = required(cfg, "path", "a model folder, a file of weights, or hf:OWNER/NAME/FILE")
    source = fetch(path) if path.startswith("hf:") else Path(path)
    model = _read(source, cfg)
    save_model(out, model)
    print(f"{out}: {type(model.unet).__name__} from {cfg.path}. Try it: sdscratch sample model={out} prompt=...")


def require_free(out: Path) -> None:
    """Raise ConfigError where something is in the way: nothing that is there is ever replaced."""
    try:
        is_free = not os.path.lexists(out) or (out.is_dir() and not any(out.iterdir()))
    except OSError as error:
        raise CannotWriteError(f"cannot write {out}: {error.strerror}. Choose another out=") from error
    if not is_free:
        raise ConfigError(f"out={out} is there already: choose another place, or remove it")


def _read(source: Path, cfg: DictConfig) -> Model:
    if run_around(source):
        raise ConfigError(
            f"{cfg.path} is a run's checkpoint: `sdscratch export {cfg.path} {cfg.out}` makes a model folder of it"
        )
    configs = optional(cfg, "configs")
    if not source.is_file():
        folder = find_model_folder(source)
        if cfg.weights != "ema" or cfg.partial or configs:
            raise ConfigError(f"{cfg.path} is a folder: weights=, partial= and configs= are for single files")
        return load_model_folder(folder)
    return ModelFile(
        path=source,
        weights=cfg.weights,
        partial=cfg.partial,
        heads=cfg.heads,
        vae=cfg.vae,
        text_encoder=cfg.text_encoder,
        configs=Path(configs) if configs else None,
    ).load(say=lambda left_out: warn(f"left out: {left_out}"))

"""`sdscratch export MODEL OUT`: a model for other programs, with a page that says where it comes from."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from omegaconf import DictConfig

from sdscratch.commands.data_paths import out_folder
from sdscratch.commands.evaluated import evaluation_folder
from sdscratch.commands.import_model import require_free
from sdscratch.commands.provenance import measures, provenance
from sdscratch.devices import DTYPES
from sdscratch.errors import ConfigError, DataError, check_choice
from sdscratch.interop.diffusers_folder import Model, save_model
from sdscratch.interop.hub import check_repository, push
from sdscratch.interop.model_card import Provenance, model_card
from sdscratch.interop.model_source import load_model, raw_weights
from sdscratch.interop.single_file import clear_place, configs_beside, write_single_file
from sdscratch.interop.weight_files import check_finite
from sdscratch.models.pretrained import without_commentary
from sdscratch.models.released_unet import ReleasedUNet

FORMATS = ("diffusers", "single_file")


def run(cfg: DictConfig) -> None:
    """Write `model` to `out` in the format and dtype asked for, then upload it if that is asked for."""
    _check(cfg)
    out = Path(cfg.out)
    model = _load(cfg)
    known = provenance(cfg.model, model.about)
    measured = measures(
        Path(str(cfg.evaluation or evaluation_folder(cfg.model))), model, asked_for=cfg.evaluation is not None
    )
    if cfg.format == "single_file":
        configs = configs_beside(out)
        card = model_card(out.stem, model, cfg.dtype, known, measured, file=out.name, configs=configs.name)
        write_single_file(out, model, DTYPES[cfg.dtype], more=partial(_write_page, card, known))
        print(f"{out}\n{configs}: what the file does not say, and a page about it")
        written = [out, configs]
    else:
        card = model_card(out.name, model, cfg.dtype, known, measured, file=cfg.push or out.name)
        save_model(out, _in_dtype(model, DTYPES[cfg.dtype], cfg.dtype), more=partial(_write_page, card, known))
        print(out)
        written = [out]
    if cfg.push is not None:
        print(f"uploaded to {[push(path, cfg.push) for path in written][0]}")


def _check(cfg: DictConfig) -> None:
    for key, known in (("format", FORMATS), ("dtype", [*DTYPES]), ("weights", ("ema", "raw"))):
        check_choice(key, cfg[key], known)
    out = out_folder(cfg)
    require_free(out)
    if cfg.format == "single_file":
        if out.suffix != ".safetensors":
            raise ConfigError(f"out={out} is no name for a single file: expected one that ends with .safetensors")
        clear_place(out)
        require_free(configs_beside(out))
    if cfg.push is not None:
        check_repository(cfg.push)


def _load(cfg: DictConfig) -> Model:
    model = load_model(cfg.model)
    if cfg.format == "diffusers" and isinstance(model.unet, ReleasedUNet):
        raise DataError(
            f"{cfg.model} has the released checkpoint's network, which diffusers does not have: "
            "export it with format=single_file, or use its model folder with sdscratch"
        )
    if cfg.weights == "raw":
        raw = raw_weights(cfg.model, model.unet)
        model = model._replace(unet=raw, about={**model.about, "weights": "raw"})
    return model


def _in_dtype(model: Model, dtype: torch.dtype, name: str) -> Model:
    for network in (model.unet, model.encoders.vae, model.encoders.text.model):
        with without_commentary():  # diffusers warns of modules to be kept in float32, of which there are none here
            network.to(dtype)
        check_finite(network.state_dict(), f"in {name}")
    return model


def _write_page(card: str, known: Provenance, folder: Path) -> None:
    (folder / "README.md").write_text(card, encoding="utf-8")
    if known.samples is not None:
        (folder / "samples.png").write_bytes(known.samples)

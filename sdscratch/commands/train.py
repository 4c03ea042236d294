"""`sdscratch train`: one stage of training, into its run folder."""

from __future__ import annotations

import logging
import platform
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import lightning as L
import torch
import transformers
from omegaconf import DictConfig, OmegaConf

from sdscratch import __version__
from sdscratch.config import build, build_named, save_config
from sdscratch.data import DataModule, LatentCollate, check_resolution
from sdscratch.data.captions import captions_of, record_of
from sdscratch.errors import ConfigError, RunFolderError
from sdscratch.files import write_atomically, write_json
from sdscratch.models.encoders import FrozenEncoders, TextEncoder, downsampling_factor, fingerprint
from sdscratch.models.tokenizer import load_tokenizer, save_tokenizer
from sdscratch.randomness import key
from sdscratch.run_folder import Checkpoint, RunFolder
from sdscratch.training import RunFolderIO, Stage
from sdscratch.training.validation import held_out


def run(cfg: DictConfig) -> None:
    """Train what the configuration says, or go on with it."""
    train(cfg)


def train(cfg: DictConfig) -> RunFolder:
    """Train one stage to its last step and leave a model folder. The configuration has been checked."""
    folder = RunFolder(Path(cfg.paths.runs) / str(cfg.name))
    state = folder.state()
    if cfg.resume_from == "auto" and state.get("status") == "done" and state["step"] >= cfg.max_steps:
        print(f"{folder.path} is finished: nothing to do")
        return folder
    checkpoint = _starting_point(folder, cfg)
    folder.create()
    folder.lock()
    try:
        _quieten_libraries()
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        torch.manual_seed(key(cfg.seed, "initial weights", 0))
        datamodule: DataModule = build(cfg.dataset)
        datamodule.start_step = checkpoint.step if checkpoint else 0
        module = _stage(cfg, datamodule, folder)
        _write_beginnings(folder, cfg)
        trainer = build(
            cfg.trainer,
            default_root_dir=str(folder.path),
            callbacks=list(build_named(cfg.callbacks).values()),
            logger=list(build_named(cfg.logger).values()),
            plugins=[RunFolderIO()],
        )
        folder.set_state(status="running", stage=type(module).__name__, max_steps=cfg.max_steps)
        if checkpoint:
            print(f"{folder.path}: going on after step {checkpoint.step}", flush=True)
        trainer.fit(module, datamodule, ckpt_path=checkpoint and str(checkpoint.path), weights_only=True)
        if trainer.global_step < cfg.max_steps:
            raise RunFolderError(
                f"{folder.path} stopped at step {trainer.global_step}: `sdscratch resume {folder.path}`"
            )
        about = _provenance(cfg, datamodule, trainer)
        module.save(module.ema.network, folder.model_folder, held_out(trainer, module), about)
        folder.set_state(status="done", step=trainer.global_step, samples_seen=about["samples_seen"])
        for logger in trainer.loggers:
            logger.finalize("success")
    finally:
        folder.unlock()
    return folder


def _starting_point(folder: RunFolder, cfg: DictConfig) -> Checkpoint | None:
    for name in ("max_steps", "global_batch_size"):
        if not isinstance(cfg[name], int) or cfg[name] < 1:
            raise ConfigError(f"{name} is {cfg[name]!r}; expected a whole number of 1 or more")
    if cfg.resume_from not in (None, "auto"):
        raise ConfigError(f"resume_from={cfg.resume_from} is unknown; expected auto, or `sdscratch resume RUN`")
    if cfg.resume_from == "auto":
        return folder.newest_intact_checkpoint()
    if folder.holds_a_run():
        raise RunFolderError(
            f"{folder.path} already holds a run. Go on with it by `sdscratch resume {folder.path}`, "
            "or choose another name="
        )
    return None


def _stage(cfg: DictConfig, datamodule: DataModule, folder: RunFolder) -> Stage:
    """The LightningModule, with all that it stands on; the datamodule learns what its batches must hold."""
    training = {
        "optimizer": build(cfg.optimizer),
        "lr_schedule": build(cfg.lr_schedule),
        "global_batch_size": cfg.global_batch_size,
    }
    if datamodule.indexes[1] is None:
        raise ConfigError("the held-out set is empty: set dataset.holdout to a share above 0, or dataset.val_path")
    if "objective" in cfg:
        return _latent_diffusion(cfg, datamodule, folder, training)
    if "text_encoder" in cfg:
        return build(cfg.stage, text=_text_encoder(cfg, datamodule, folder), **training)
    vae = build(cfg.vae)
    check_resolution(cfg.dataset.resolution, downsampling_factor(vae))
    return build(cfg.stage, network=vae, **training)


def _latent_diffusion(cfg: DictConfig, datamodule: DataModule, folder: RunFolder, training: dict[str, Any]) -> Stage:
    encoders = FrozenEncoders(build(cfg.vae), _text_encoder(cfg, datamodule, folder))
    factor, channels = downsampling_factor(encoders.vae), encoders.vae.config.latent_channels
    check_resolution(cfg.dataset.resolution, factor)
    if datamodule.kind == "latents":
        datamodule.require_vae(fingerprint(encoders.vae))
        datamodule.scaling_factor = encoders.vae.config.scaling_factor
    unet, objective = build(cfg.model), build(cfg.objective)
    for what, found, expected in (
        ("model.in_channels", unet.config["in_channels"], channels),
        ("model.cross_attention_dim", unet.config["cross_attention_dim"], encoders.text.model.config.hidden_size),
    ):
        if found != expected:
            raise ConfigError(f"{what} is {found}, but the frozen encoders give {expected}: set it to that")
    side = cfg.dataset.resolution // factor
    datamodule.collate = LatentCollate(
        cfg.seed, objective.timesteps, cfg.caption_dropout, latent_shape=(channels, side, side)
    )
    return build(
        cfg.stage, network=unet, encoders=encoders, objective=objective, sampling=build(cfg.sampler), **training
    )


def _text_encoder(cfg: DictConfig, datamodule: DataModule, folder: RunFolder) -> TextEncoder:
    """As configured; a tokenizer learnt here is kept in the run folder, so that a resumed run reads it again."""
    kept = folder.path / "tokenizer"
    if kept.is_dir():
        return build(cfg.text_encoder, captions=[], tokenizer=load_tokenizer(kept))
    text: TextEncoder = build(cfg.text_encoder, captions=_all_captions(datamodule))
    if text.clip is not None:
        save_tokenizer(text.tokenizer, kept)
    return text


def _all_captions(datamodule: DataModule) -> Iterator[str]:
    index = datamodule.indexes[0]
    for n in range(len(index)):
        members = index.read(n)
        yield from captions_of(members, record_of(members))


def _write_beginnings(folder: RunFolder, cfg: DictConfig) -> None:
    save_config(cfg, folder.config_file)
    recipe = cfg.copy()
    recipe.paths = OmegaConf.to_container(cfg.paths, resolve=True)  # from the environment, which may differ next time
    save_config(recipe, folder.recipe_file, resolve=False)
    words = " ".join(shlex.quote(word) for word in sys.argv[1:])
    write_atomically(folder.path / "overrides.txt", lambda file: file.write(f"{words}\n".encode()))
    write_json(
        folder.path / "environment.json",
        {
            "sdscratch": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": L.__version__,
            "platform": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    )


def _provenance(cfg: DictConfig, datamodule: DataModule, trainer: L.Trainer) -> dict[str, Any]:
    """Where a model folder's weights come from."""
    index = datamodule.indexes[0]
    return {
        "weights": "ema",
        "run": cfg.name,
        "step": trainer.global_step,
        "samples_seen": trainer.global_step * cfg.global_batch_size,
        "seed": cfg.seed,
        "resolution": cfg.dataset.resolution,
        "data": {"made_by": index.made_by, "samples": len(index), "fingerprint": index.fingerprint},
    }


def _quieten_libraries() -> None:
    """Their hints and bars are for people who call them themselves; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (".*does not have many workers.*", ".*no `validation_step`.*", ".*treespec, LeafSpec.*"):
        warnings.filterwarnings("ignore", message)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

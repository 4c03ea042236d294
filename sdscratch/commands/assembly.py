"""From a configuration to the LightningModule that it describes, with all that it stands on."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig

from sdscratch.config import build
from sdscratch.data import BaseDataModule, LatentCollate, check_resolution
from sdscratch.errors import ConfigError
from sdscratch.files import replace_folder
from sdscratch.models.encoders import FrozenEncoders, TextEncoder, downsampling_factor, fingerprint
from sdscratch.models.tokenizer import load_tokenizer, save_tokenizer
from sdscratch.randomness import key
from sdscratch.run_folder import RunFolder
from sdscratch.training import Stage, ranks
from sdscratch.training.initial_weights import tokenizer_folder
from sdscratch.training.stage import Augmentation


def make_stage(cfg: DictConfig, datamodule: BaseDataModule, folder: RunFolder) -> Stage:
    """The stage of the configuration, ready for the trainer; the datamodule learns what its batches must hold.

    Networks that are not read from somewhere have random weights, a function of the seed.
    """
    torch.manual_seed(key(cfg.seed, "initial weights", 0))
    training = {
        "optimizer": build(cfg.optimizer),
        "lr_schedule": build(cfg.lr_schedule),
        "global_batch_size": cfg.global_batch_size,
        "augment": _augment(cfg, datamodule),
    }
    if datamodule.held_out() is None:
        raise ConfigError("the held-out set is empty: set dataset.holdout to a share above 0, or dataset.val_path")
    if "objective" in cfg:
        return _latent_diffusion(cfg, datamodule, folder, training)
    if "text_encoder" in cfg:
        return build(cfg.stage, text=_text_encoder(cfg, datamodule, folder), **training)
    vae = build(cfg.vae)
    check_resolution(cfg.dataset.resolution, downsampling_factor(vae))
    return build(cfg.stage, network=vae, **training)


def _augment(cfg: DictConfig, datamodule: BaseDataModule) -> Augmentation | None:
    node = cfg.get("augment")  # runs from before there was one have no such key
    if node is not None and datamodule.kind == "latents":
        raise ConfigError("augment changes pictures, but dataset.path holds latents: set augment=none, or image shards")
    return build(node)


def _latent_diffusion(
    cfg: DictConfig, datamodule: BaseDataModule, folder: RunFolder, training: dict[str, Any]
) -> Stage:
    encoders, sampling = FrozenEncoders(build(cfg.vae), _text_encoder(cfg, datamodule, folder)), build(cfg.sampler)
    factor, channels = downsampling_factor(encoders.vae), encoders.vae.config.latent_channels
    check_resolution(cfg.dataset.resolution, factor)
    check_resolution(sampling.size, factor, "sampler.size")
    if datamodule.kind == "latents":
        datamodule.require_vae(fingerprint(encoders.vae))
        datamodule.scaling_factor = encoders.vae.config.scaling_factor
        if datamodule.holds_states_of(encoders.text.fingerprint):
            datamodule.text_shape = encoders.text.states_shape
    unet, objective = build(cfg.model), build(cfg.objective)
    objective.noise_schedule.grid(sampling.num_inference_steps)  # now rather than at the first preview
    for name, expected in encoders.unet_sizes.items():
        if unet.config[name] != expected:
            raise ConfigError(
                f"model.{name} is {unet.config[name]}, but the frozen encoders give {expected}: set it to that"
            )
    side = cfg.dataset.resolution // factor
    datamodule.collate = LatentCollate(
        cfg.seed,
        objective.timesteps,
        cfg.caption_dropout,
        latent_shape=(channels, side, side),
        validation_timesteps=objective.noise_schedule.timesteps_at,  # evenly, so that runs compare
    )
    return build(cfg.stage, network=unet, encoders=encoders, objective=objective, sampling=sampling, **training)


def _text_encoder(cfg: DictConfig, datamodule: BaseDataModule, folder: RunFolder) -> TextEncoder:
    """As configured; the tokenizer of a new one is kept in the run folder, so that a resumed run reads it again."""
    kept = folder.path / "tokenizer"
    if datamodule.start_step and kept.is_dir():
        return build(cfg.text_encoder, captions=[], tokenizer=load_tokenizer(kept))
    known: dict[str, Any] = {}
    if cfg.init_from is not None and "path" not in cfg.text_encoder:  # weights mean tokens by their numbers
        known = {"tokenizer": load_tokenizer(tokenizer_folder(str(cfg.init_from)))}
    text: TextEncoder = build(cfg.text_encoder, captions=datamodule.captions(), **known)
    if text.clip is not None and ranks.is_first():
        replace_folder(kept, lambda half: save_tokenizer(text.tokenizer, half))
    return text

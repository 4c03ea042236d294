"""`sdscratch data encode`: image shards -> latent shards."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from sdscratch.errors import ConfigError
from sdscratch.models.encoders import load_vae
from sdscratch.prepare.encode import QUARANTINED, Encoder
from sdscratch.run_folder import RunFolder


def run(cfg: DictConfig) -> None:
    """Encode `path` into `out` with the VAE of `model`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    of_run = RunFolder(cfg.model).model_folder
    vae = load_vae(str(of_run if of_run.is_dir() else cfg.model))
    vae.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("encoding", total=None)
        encoder = Encoder(
            vae,
            cfg.resolution,
            cfg.flips,
            cfg.on_bad,
            cfg.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
        manifest = encoder.write(Path(cfg.path), Path(cfg.out))
    if encoder.bad:
        named = f"{encoder.bad[0]}; all are named in {Path(cfg.out) / QUARANTINED}"
        print(f"warning: {len(encoder.bad)} bad samples left out. {named}", file=sys.stderr)
    print(f"{cfg.out}: latents of {manifest.total} pictures of {cfg.resolution} px, VAE {manifest.made_by['vae']}")

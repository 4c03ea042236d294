"""`sdscratch data encode`: image shards -> latent shards."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import Progress

from sdscratch.errors import ConfigError
from sdscratch.prepare.encode.encoding import Encoding
from sdscratch.run_folder import RunFolder


def run(cfg: DictConfig) -> None:
    """Encode `path` into `out` with the VAE of `model`, and the captions with the text encoder of `text`."""
    if not cfg.out:
        raise ConfigError("out is empty: expected a folder, `.` for this one")
    device = cfg.device or ("cuda" if torch.cuda.is_available() else "cpu")
    encoding = Encoding(
        source=Path(cfg.path),
        out=Path(cfg.out),
        vae=_networks(cfg.model),
        text=_networks(cfg.text) if cfg.text else None,
        resolution=cfg.resolution,
        flips=cfg.flips,
        on_bad=cfg.on_bad,
        batch_size=cfg.batch_size,
        threads=cfg.threads,
        device=device,
        dtype=cfg.dtype or ("bfloat16" if device == "cuda" else "float32"),
    )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("encoding", total=None)
        manifest, quality = encoding.run(
            cfg.engine, cfg.workers, lambda done, total: bar.update(task, completed=done, total=total)
        )
    said = [f"{cfg.out}: latents of {manifest.total} pictures of {cfg.resolution} px", f"VAE {manifest.made_by['vae']}"]
    if manifest.dropped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in manifest.dropped.items())
        said.append(f"left out and named in dropped.jsonl: {reasons}")
    if quality is not None:
        said.append(f"decoded again {quality.psnr:.1f} dB")
        if encoding.dtype != "float32":
            said.append(f"{encoding.dtype} within {quality.error:.2%} of float32")
    print(", ".join(said))


def _networks(model: str) -> str:
    """A run's model folder; else a folder or hub id as it stands."""
    of_run = RunFolder(model).model_folder
    return str(of_run if of_run.is_dir() else model)

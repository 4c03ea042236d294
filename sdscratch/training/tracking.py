"""Weights & Biases beside the files: the same rows and pictures, for those who have it."""

from __future__ import annotations

import os
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Literal

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

Mode = Literal["auto", "online", "offline"]


def wandb_logger(run_dir: str, name: str | float, project: str = "sdscratch", mode: Mode = "auto") -> WandbLogger:
    """One W&B run per run folder, whatever the number of resumes; its id is kept in `wandb/id`.

    name: the run's, which may be a number.
    mode: "auto" goes offline where no key is to be found, so that nobody is asked for one; WANDB_MODE overrules it.
    """
    import wandb

    if wandb.run is not None:
        wandb.finish()  # an earlier run of this process, into which Lightning would go on writing
    folder = Path(run_dir) / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "id"
    if not id_file.exists():
        id_file.write_text(os.urandom(4).hex())
    os.environ.setdefault("WANDB_SILENT", "true")
    chosen = os.environ.get("WANDB_MODE") or mode
    offline = chosen == "offline" or (chosen == "auto" and not _has_key())
    return WandbLogger(
        name=str(name), project=project, id=id_file.read_text().strip(), save_dir=run_dir, offline=offline
    )


def log_image(trainer: L.Trainer, key: str, picture: Image.Image, step: int) -> None:
    """Give a picture to the W&B logger, if there is one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(key, [picture], step=step)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in netrc().hosts
    except (OSError, NetrcParseError):
        return False

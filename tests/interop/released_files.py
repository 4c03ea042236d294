"""Files in the format of the released checkpoint, small, with the outputs that the original network gave for their weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from released_record import recorded_weights


def content(live_prefix: str = "", ema_prefix: str = "module.") -> dict[str, Any]:
    """What the released file holds, with the prefixes that its programs have left at one time or another."""
    return {
        "epoch": 42,
        "global_step": 232235,
        "best_loss": 0.0947,
        "unet_state_dict": {live_prefix + name: tensor for name, tensor in recorded_weights(ema=False).items()},
        "optimizer_state_dict": {},
        "lr_scheduler_state_dict": {},
        "ema_state_dict": {
            "shadow": {ema_prefix + name: tensor for name, tensor in recorded_weights(ema=True).items()},
            "step_count": 232235,
            "decay": 0.9999,
        },
    }


def write(path: Path, saved: dict[str, Any] | None = None) -> Path:
    torch.save(content() if saved is None else saved, path)
    return path

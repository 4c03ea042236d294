"""Files in the format of the released checkpoint, small, with the outputs that the original network gave for their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

RECORD = json.loads((Path(__file__).parents[1] / "models" / "released_unet.json").read_text())
HEADS = RECORD["config"]["heads"]
CONTEXT = RECORD["config"]["ctx_dim"]


def recorded_weights(ema: bool) -> dict[str, Tensor]:
    """Drawn key by key in the order of the record: 0.05 z for matrices and kernels, 0.1 z about 1 or 0 for vectors."""
    draws, weights = torch.Generator().manual_seed(RECORD["seed"] + int(ema)), {}
    for key, shape in RECORD["keys"].items():
        z = torch.randn(shape, generator=draws)
        about = 1.0 if len(shape) == 1 and key.endswith("weight") else 0.0
        weights[key] = 0.05 * z if len(shape) > 1 else about + 0.1 * z
    return weights


def recorded_inputs() -> tuple[Tensor, Tensor, Tensor]:
    draws, batch, side = torch.Generator().manual_seed(RECORD["seed"] + 2), RECORD["batch"], RECORD["side"]
    latents = torch.randn(batch, 4, side, side, generator=draws)
    text = torch.randn(batch, RECORD["length"], CONTEXT, generator=draws)
    return latents, torch.tensor(RECORD["timesteps"]), text


def expected(weights: str) -> Tensor:
    return torch.tensor(RECORD["expected"]["eps_ema" if weights == "ema" else "eps"])


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

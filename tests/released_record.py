"""What the released network gave for weights and inputs that anyone can draw again: tests/models/released_unet.json."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

RECORD = json.loads((Path(__file__).parent / "models" / "released_unet.json").read_text())
"""Of a small network of atandra2000/StableDiffusion (MIT): its constructor's numbers, its keys, a seed, and its outputs."""

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

"""What latents will look like, in no time: one linear map from a latent's channels to red, green and blue."""

from __future__ import annotations

import math

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdscratch.data import to_pil
from sdscratch.models.encoders import FrozenEncoders

SIDE = 8  # latents
PLAIN, BLOCKS, BLOCK = 24, 8, 4
GAP = 1  # latents between pictures; nothing is there


class Preview:
    """Latents (B, C, h, w) -> one picture of them all, a pixel for each latent.

    The map is the least-squares fit to what this very VAE encodes: some plain colours, and some blocks of them.
    """

    def __init__(self, encoders: FrozenEncoders, factor: int) -> None:
        """factor: how many pixels one latent spans. Encodes a few small pictures; takes less than a second on a CPU."""
        generator = torch.Generator().manual_seed(0)
        plain, blocks = (_colours(*sizes, generator) for sizes in ((PLAIN, SIDE), (BLOCKS, BLOCK)))
        colours = torch.cat([plain, blocks])
        images = functional.interpolate(colours, scale_factor=factor).to(next(encoders.vae.parameters()))
        latents = encoders.encode_images(images, torch.zeros(())).float().cpu()
        self._map = torch.linalg.lstsq(_with_one(_rows(latents)), _rows(colours)).solution  # (C + 1, 3)

    def __call__(self, latents: Tensor) -> Image.Image:
        """RGBA. Several lie in as many columns as rows, or one more, with gaps between them."""
        latents = latents.detach().float().cpu()
        count, _, height, width = latents.shape
        colours = (_with_one(_rows(latents)) @ self._map).reshape(count, height, width, 3).permute(0, 3, 1, 2)
        columns = math.ceil(math.sqrt(count))
        rows = math.ceil(count / columns)
        sheet = Image.new("RGBA", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP))
        for i, image in enumerate(map(to_pil, colours)):
            sheet.paste(image, (i % columns * (width + GAP), i // columns * (height + GAP)))
        return sheet


def _colours(count: int, block: int, generator: torch.Generator) -> Tensor:
    """Bright ones in blocks of `block` pixels: (count, 3, SIDE, SIDE) in [-1, 1]."""
    dull = torch.rand((count, 3, SIDE // block, SIDE // block), generator=generator) * 2 - 1
    return functional.interpolate((dull + dull.sign()) / 2, scale_factor=block)


def _rows(images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)

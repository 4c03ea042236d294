"""What latents will look like, in no time: one linear map from a latent's channels to red, green and blue."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sdscratch.data import to_pil
from sdscratch.models.encoders import FrozenEncoders

SAMPLES, SIDE, PATCH = 32, 8, 4
MOST_ACROSS = 3  # pictures side by side


class Preview:
    """Latents (B, C, h, w) -> one picture of them all, a pixel for each latent.

    The map is the least-squares fit to what this very VAE makes of random latents, so that it serves any.
    """

    def __init__(self, encoders: FrozenEncoders, factor: int) -> None:
        """factor: how many pixels one latent spans. Decodes a few small pictures; takes less than a second on a CPU."""
        channels = encoders.vae.config.latent_channels
        generator = torch.Generator().manual_seed(0)
        patches = torch.randn((SAMPLES, channels, SIDE // PATCH, SIDE // PATCH), generator=generator)
        latents = functional.interpolate(patches, scale_factor=PATCH)  # areas of a colour, as pictures have
        weights = next(encoders.vae.parameters())
        images = encoders.decode(latents.to(weights)).float().cpu()
        colours = functional.avg_pool2d(images, factor).clamp(-1, 1)
        solution = torch.linalg.lstsq(_with_one(_rows(latents)), _rows(colours)).solution  # (C + 1, 3)
        self._map = solution

    def __call__(self, latents: Tensor) -> Image.Image:
        """Side by side where there are several."""
        latents = latents[: MOST_ACROSS**2].detach().float().cpu()
        count, _, height, width = latents.shape
        colours = (_with_one(_rows(latents)) @ self._map).reshape(count, height, width, 3).permute(0, 3, 1, 2)
        across = min(count, MOST_ACROSS)
        sheet = Image.new("RGB", (across * width, -(-count // across) * height))
        for i, image in enumerate(map(to_pil, colours)):
            sheet.paste(image, (i % across * width, i // across * height))
        return sheet


def _rows(images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B * h * w, C)."""
    return images.permute(0, 2, 3, 1).flatten(0, 2)


def _with_one(rows: Tensor) -> Tensor:
    return torch.cat([rows, torch.ones(len(rows), 1)], dim=1)

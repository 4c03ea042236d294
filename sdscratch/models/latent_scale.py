"""Latents of mean 0 and standard deviation 1: measured once, then a property of the VAE."""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from diffusers import AutoencoderKL

from sdscratch.errors import ConfigError


class LatentMoments:
    """Mean per channel, and standard deviation over all elements about those means, of latents drawn from posteriors.

    totals: float64 (C, 3), per channel the number of elements, their sum and sum of squares. Ranks add theirs.
    """

    def __init__(self, channels: int) -> None:
        self.totals = torch.zeros(channels, 3, dtype=torch.float64)

    def add(self, posterior: Any) -> None:
        """Take in diffusers' posterior of a batch; its own variance counts, since training draws from it."""
        mean, variance = posterior.mean.double().cpu(), posterior.var.double().cpu()
        count = torch.full((mean.shape[1],), mean[:, 0].numel(), dtype=torch.float64)
        over = (0, 2, 3)
        self.totals += torch.stack([count, mean.sum(over), (mean.square() + variance).sum(over)], dim=1)

    @property
    def mean(self) -> torch.Tensor:
        """(C,) float64."""
        return self.totals[:, 1] / self.totals[:, 0]

    @property
    def std(self) -> float:
        """About the channel means, over all channels."""
        return float((self.totals[:, 2] / self.totals[:, 0] - self.mean.square()).mean().sqrt())

    def as_dict(self) -> dict[str, Any]:
        """For people."""
        return {"mean": self.mean.tolist(), "std": self.std, "elements": int(self.totals[:, 0].sum())}


@torch.no_grad()
def with_unit_latents(vae: AutoencoderKL, moments: LatentMoments) -> AutoencoderKL:
    """A copy whose latents have mean 0 and, times its scaling_factor, standard deviation 1; its pictures are the same.

    The shift goes into the 1x1 convolutions around the latents, because the pipelines that will read the folder know a
    scaling_factor but no shift: quant_conv(h) - m on the way in, post_quant_conv(z + m) on the way out.
    """
    vae = deepcopy(vae)
    shift = moments.mean.to(vae.quant_conv.bias)
    vae.quant_conv.bias[: len(shift)] -= shift
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ shift
    vae.register_to_config(scaling_factor=1 / moments.std)
    return vae


@torch.no_grad()
def with_scaling_factor(vae: AutoencoderKL, scaling_factor: float) -> AutoencoderKL:
    """A copy with another scaling_factor, but the same scaled latents and pictures.

    For programs that take a certain factor for granted. The difference goes into the 1x1 convolutions around the latents.
    Raises ConfigError for a VAE without them.
    """
    ratio = vae.config.scaling_factor / scaling_factor
    vae = deepcopy(vae)
    if ratio != 1:
        if vae.quant_conv is None or vae.post_quant_conv is None:
            raise ConfigError(f"this VAE has no 1x1 convolutions that could take a scaling_factor of {scaling_factor}")
        channels = vae.config.latent_channels
        vae.quant_conv.weight[:channels] *= ratio
        vae.quant_conv.bias[:channels] *= ratio
        vae.quant_conv.bias[channels:] += 2 * math.log(ratio)  # of the posterior's variance
        vae.post_quant_conv.weight /= ratio
    vae.register_to_config(scaling_factor=scaling_factor)
    return vae

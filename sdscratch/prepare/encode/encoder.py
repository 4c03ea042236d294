"""The networks that turn samples into what a latent shard holds, on one device."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sdscratch.data.shards import Members
from sdscratch.errors import ConfigError, DataError
from sdscratch.models.encoders import TextEncoder, load_text_encoder, load_vae
from sdscratch.prepare.engine import worker_number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_ERROR = 0.05  # a VAE that is at home in bfloat16 stays below 0.01


class Quality(NamedTuple):
    """Of a few pictures. error: of their means, relative to those in float32. psnr: in dB, encoded and decoded again."""

    error: float
    psnr: float


@dataclass(frozen=True)
class Encoder:
    """A frozen VAE, perhaps with a text encoder. dtype: of the VAE's arithmetic; weights and results are float32."""

    vae: AutoencoderKL
    text: TextEncoder | None
    dtype: str

    @torch.no_grad()
    def moments(self, images: Tensor, flips: bool = False, dtype: str | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> mean and log-variance, (B, flips, 2, C, h, w) float32 on the CPU.

        flips: those of the mirrored pictures as well. dtype: another one than that of the encoder.
        """
        dtype, images = dtype or self.dtype, images.to(self.vae.device)
        views = [images, images.flip(-1)] if flips else [images]
        with torch.autocast(images.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            posteriors = [self.vae.encode(view).latent_dist for view in views]
        return torch.stack([torch.stack([p.mean, p.logvar], dim=1) for p in posteriors], dim=1).float().cpu()

    @torch.no_grad()
    def quality(self, images: Tensor) -> Quality:
        """Raises DataError where the dtype changes what the VAE says."""
        means, exact = (self.moments(images, dtype=dtype)[:, 0, 0] for dtype in (self.dtype, "float32"))
        if (error := float((means - exact).norm() / exact.norm())) > MAX_ERROR:
            raise DataError(
                f"in {self.dtype} the latents of this VAE are {error:.1%} away from those in float32, allowed are "
                f"{MAX_ERROR:.0%}. Set dtype=float32."
            )
        again = self.vae.decode(means.to(self.vae.device)).sample.clamp(-1, 1).cpu()
        return Quality(error, float(10 * torch.log10(4 / (again - images).square().mean())))

    def states(self, captions: Sequence[Sequence[str]]) -> Iterator[Members]:
        """Of each picture's captions, as its `text.npy`: float16 (captions, T, D). Nothing without captions or encoder."""
        texts = [text for of_picture in captions for text in of_picture] if self.text else []
        states = self.text(texts).half().cpu().numpy() if self.text and texts else np.empty(0)
        first = 0
        for of_picture in captions:
            mine = states[first : first + len(of_picture)]
            first += len(mine)
            np.save(file := io.BytesIO(), mine, allow_pickle=False)
            yield {"text.npy": file.getvalue()} if len(mine) else {}


def check_device(device: str, is_here: bool) -> None:
    """Raise ConfigError for what torch cannot compute on; is_here: on this machine, so that it can be asked."""
    if (found := re.fullmatch(r"cpu|mps|cuda(?::(\d{1,2}))?", str(device))) is None:
        raise ConfigError(f"device={device!r} is unknown; expected cuda, cuda:1 and so on, or cpu")
    if is_here and device.startswith("cuda") and int(found[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: torch finds {torch.cuda.device_count()} CUDA devices here. Set device=cpu")
    if is_here and device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: torch finds none here. Set device=cpu")


@lru_cache(maxsize=1)  # a process needs one, for all its shards
def load_encoder(vae: str, text: str | None, device: str, dtype: str) -> Encoder:
    """vae, text: folders or hub ids. device: as torch calls it; of several CUDA devices each worker takes its own."""
    number = worker_number()
    if number is not None:
        torch.set_num_threads(1)  # other cores have workers of their own
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
    text_encoder = None if text is None else load_text_encoder([], text)
    if text_encoder is not None:
        text_encoder.model.eval().to(device)
    return Encoder(load_vae(vae).eval().to(device), text_encoder, dtype)

"""The networks that turn samples into what a latent shard holds, on one device."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sdscratch.data.shards import Members
from sdscratch.errors import ConfigError, DataError
from sdscratch.models.encoders import TextEncoder, load_text_encoder, load_vae
from sdscratch.models.regions import compile_network
from sdscratch.prepare.engine import worker_number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MAX_ERROR = 0.05  # a VAE that is at home in bfloat16 stays below 0.01

MOST_PIXELS = 2 * 128**2
"""At once on a CPU. The activations of more do not stay in its caches, and the system hands them out page by page, anew for
each layer."""


class Quality(NamedTuple):
    """Of a few pictures. error: of their means, relative to those in float32. psnr: in dB, encoded and decoded again."""

    error: float
    psnr: float


@dataclass(frozen=True)
class Encoder:
    """A frozen VAE, perhaps with a text encoder. dtype: of the VAE's arithmetic; weights and results are float32.

    compiled_for: how many pictures the VAE was compiled for (see `compiled`), which fewer are filled up to; 0: for none.
    """

    vae: AutoencoderKL
    text: TextEncoder | None
    dtype: str
    compiled_for: int = 0

    def compiled(self, batch_size: int, backend: str = "inductor") -> Encoder:
        """The same, with the VAE compiled for so many pictures at once, when it meets the first of a size."""
        compile_network(self.vae.encoder, "whole", backend=backend)
        return replace(self, compiled_for=batch_size)

    @torch.no_grad()
    def moments(self, images: Tensor, flips: bool = False, dtype: str | None = None) -> Tensor:
        """Images (B, 3, H, W) in [-1, 1] -> mean and log-variance, (B, flips, 2, C, h, w) float32 on the CPU.

        flips: those of the mirrored pictures as well. dtype: another one than that of the encoder.
        """
        dtype = dtype or self.dtype
        with torch.autocast(self.vae.device.type, DTYPES[dtype], enabled=dtype != "float32"):
            moments = [self._moments(part, flips) for part in images.split(self._at_once(images))]
        return torch.cat(moments).float().cpu()

    def _at_once(self, images: Tensor) -> int:
        if self.vae.device.type == "cpu" and not self.compiled_for:
            return max(1, MOST_PIXELS // images[0, 0].numel())
        return self.compiled_for or len(images)

    def _moments(self, images: Tensor, flips: bool) -> Tensor:
        count, missing = len(images), max(0, self.compiled_for - len(images))
        if missing:
            images = torch.cat([images, images[-1:].expand(missing, -1, -1, -1)])
        images = images.to(self.vae.device).contiguous(memory_format=layout_on(self.vae.device))
        posteriors = [self.vae.encode(view).latent_dist for view in ([images, images.flip(-1)] if flips else [images])]
        return torch.stack([torch.stack([p.mean, p.logvar], dim=1) for p in posteriors], dim=1)[:count]

    @torch.no_grad()
    def quality(self, images: Tensor) -> Quality:
        """Raises DataError where the dtype changes what the VAE says."""
        means = self.moments(images)[:, 0, 0]
        with torch.compiler.set_stance("force_eager"):  # a few pictures are not worth a compilation of their own
            exact = self.moments(images, dtype="float32")[:, 0, 0]
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


def layout_on(device: torch.device) -> torch.memory_format:
    """Of pictures and kernels: channels last is faster on CPUs, and what tensor cores read. Nobody has tried it on mps."""
    return torch.contiguous_format if device.type == "mps" else torch.channels_last


def check_device(device: str, is_here: bool) -> None:
    """Raise ConfigError for what torch cannot compute on; is_here: on this machine, so that it can be asked."""
    if (found := re.fullmatch(r"cpu|mps|cuda(?::(\d{1,2}))?", str(device))) is None:
        raise ConfigError(f"device={device!r} is unknown; expected cuda, cuda:1 and so on, or cpu")
    if is_here and device.startswith("cuda") and int(found[1] or 0) >= torch.cuda.device_count():
        raise ConfigError(f"device={device}: torch finds {torch.cuda.device_count()} CUDA devices here. Set device=cpu")
    if is_here and device == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps: torch finds none here. Set device=cpu")


@lru_cache(maxsize=1)  # a process needs one, for all its shards
def load_encoder(vae: str, text: str | None, device: str, dtype: str, compile_for: int = 0) -> Encoder:
    """vae, text: folders or hub ids. device: as torch calls it; of several CUDA devices each worker takes its own.

    compile_for: pictures at once that the VAE is compiled for; 0: not at all.
    """
    number = worker_number()
    if number is not None:
        torch.set_num_threads(1)  # other cores have workers of their own
        if device == "cuda":
            device = f"cuda:{number % torch.cuda.device_count()}"
    text_encoder = None if text is None else load_text_encoder([], text)
    if text_encoder is not None:
        text_encoder.model.eval().to(device)
    network = load_vae(vae).eval().to(device, memory_format=layout_on(torch.device(device)))
    encoder = Encoder(network, text_encoder, dtype)
    return encoder.compiled(compile_for) if compile_for else encoder

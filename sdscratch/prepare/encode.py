"""Image shards -> latent shards: the VAE's raw means and log-variances, so that a change of scale never re-encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sdscratch.data.images import check_resolution, image_member, preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import pack
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import Members, write_shards
from sdscratch.errors import ConfigError, DataError, check_whole
from sdscratch.files import write_atomically
from sdscratch.models.encoders import downsampling_factor, fingerprint

QUARANTINED = "quarantined.txt"


@dataclass
class Encoder:
    """How samples are encoded, and what was found wrong with some of them.

    vae: on the device that is to do it. resolution: pixels of the square that is cut from each picture's centre.
    flips: encode the mirrored pictures too. on_bad: a picture that cannot be decoded stops everything ("fail"), or is
    left out and named in `bad` ("quarantine"). batch_size: pictures at once. progress: called with samples done and all.
    """

    vae: AutoencoderKL
    resolution: int
    flips: bool = False
    on_bad: Literal["fail", "quarantine"] = "fail"
    batch_size: int = 64
    progress: Callable[[int, int], None] = lambda done, total: None
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_bad not in ("fail", "quarantine"):
            raise ConfigError(f"on_bad={self.on_bad!r} is unknown; expected fail or quarantine")
        check_whole("batch_size", self.batch_size)
        check_resolution(self.resolution, downsampling_factor(self.vae))

    def write(self, source: Path, out: Path, cache: Path | None = None) -> Manifest:
        """Encode every sample of `source` into `out`; captions and records go along, quarantined.txt names the bad.

        What `out` holds already, by the same VAE from the same data, is left alone; an encoding that was stopped starts
        again. Raises DataError when `out` holds something else, or for a bad picture, naming it.
        """
        index = ShardIndex.open(source, cache)
        if index.kind != "images":
            raise DataError(f"{source} holds latents already; expected a folder of image shards")
        made_by = {
            "by": "encode",
            "vae": fingerprint(self.vae),
            "resolution": self.resolution,
            "flips": self.flips,
            "source": index.made_by,
            "source_fingerprint": index.fingerprint,
        }
        return write_shards(out, self._samples(index, out), made_by)

    def _samples(self, index: ShardIndex, out: Path) -> Iterator[tuple[str, Members]]:
        self.bad.clear()
        for first in range(0, len(index), self.batch_size):
            numbers = range(first, min(first + self.batch_size, len(index)))
            samples = {n: index.read(n) for n in numbers}
            pictures = {n: picture for n in numbers if (picture := self._picture(index, n, samples[n])) is not None}
            if pictures:
                for n, moments in zip(pictures, self._moments(torch.stack([*pictures.values()])), strict=True):
                    kept = {suffix: content for suffix, content in samples[n].items() if suffix in ("txt", "json")}
                    yield index.key(n), {"latent.npy": self._packed(index, n, moments), **kept}
            self.progress(numbers.stop, len(index))
        if self.bad:
            write_atomically(out / QUARANTINED, lambda file: file.write("\n".join([*self.bad, ""]).encode()))

    def _picture(self, index: ShardIndex, n: int, members: Members) -> Tensor | None:
        try:
            return preprocess(image_member(members), self.resolution)
        except DataError as error:
            what = f"{index.where(n)} is a bad sample: {error}"
            if self.on_bad == "fail":
                raise DataError(f"{what}. Mend it, or set on_bad=quarantine to leave such samples out.") from error
            self.bad.append(what)
            return None

    def _packed(self, index: ShardIndex, n: int, moments: Tensor) -> bytes:
        try:
            return pack(moments.numpy())
        except DataError as error:
            raise DataError(f"{index.where(n)} is not encoded by this VAE: {error}") from error

    @torch.no_grad()
    def _moments(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) -> (B, flips, 2, C, h, w): mean and log-variance, on the CPU."""
        views = [images, images.flip(-1)] if self.flips else [images]
        posteriors = [self.vae.encode(view.to(self.vae.device)).latent_dist for view in views]
        return torch.stack([torch.stack([p.mean, p.logvar], dim=1) for p in posteriors], dim=1).float().cpu()

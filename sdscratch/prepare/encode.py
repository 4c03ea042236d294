"""Image shards -> latent shards: the VAE's raw means and log-variances, so that a change of scale never re-encodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from sdscratch.data.images import check_resolution, image_member, preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import pack
from sdscratch.data.shards import Manifest, write_shards
from sdscratch.errors import DataError
from sdscratch.models.encoders import downsampling_factor, fingerprint


def encode_shards(
    source: Path,
    out: Path,
    vae: AutoencoderKL,
    resolution: int,
    flips: bool = False,
    batch_size: int = 64,
    cache: str | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Encode every sample of `source`, its centre crop of `resolution` pixels, into `out`; captions and records go along.

    flips: keep the mirrored picture's latents too. progress: called with samples done and all samples. What `out` holds
    already, by the same VAE from the same data, is left alone. Raises DataError naming a picture that cannot be encoded.
    """
    check_resolution(resolution, downsampling_factor(vae))
    index = ShardIndex.open(source, cache)
    if index.kind != "images":
        raise DataError(f"{source} holds latents already; expected a folder of image shards")
    made_by = {
        "by": "encode",
        "vae": fingerprint(vae),
        "resolution": resolution,
        "flips": flips,
        "source": index.made_by,
        "source_fingerprint": index.fingerprint,
    }
    return write_shards(out, _encoded(index, vae, resolution, flips, batch_size, progress), made_by)


def _encoded(
    index: ShardIndex,
    vae: AutoencoderKL,
    resolution: int,
    flips: bool,
    batch_size: int,
    progress: Callable[[int, int], None],
) -> Iterator[tuple[str, dict[str, bytes]]]:
    for first in range(0, len(index), batch_size):
        numbers = range(first, min(first + batch_size, len(index)))
        samples = [index.read(n) for n in numbers]
        images = torch.stack(
            [_picture(index, n, members, resolution) for n, members in zip(numbers, samples, strict=True)]
        )
        views = [images, images.flip(-1)] if flips else [images]
        moments = np.stack([_moments(vae, view) for view in views], axis=1)  # (B, flips, 2, C, h, w)
        for n, members, latents in zip(numbers, samples, moments, strict=True):
            kept = {suffix: content for suffix, content in members.items() if suffix in ("txt", "json")}
            yield index.key(n), {"latent.npy": pack(latents), **kept}
        progress(numbers.stop, len(index))


def _picture(index: ShardIndex, n: int, members: dict[str, bytes], resolution: int) -> Tensor:
    try:
        return preprocess(image_member(members), resolution)
    except DataError as error:
        raise DataError(f"{index.where(n)} is a bad sample: {error}") from error


@torch.no_grad()
def _moments(vae: AutoencoderKL, images: Tensor) -> np.ndarray:
    """(B, 2, C, h, w): mean and log-variance."""
    posterior = vae.encode(images.to(vae.device)).latent_dist
    return torch.stack([posterior.mean, posterior.logvar], dim=1).float().cpu().numpy()

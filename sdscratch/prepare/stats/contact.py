"""Some samples of a folder of shards as pictures with captions, for people to look at."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from sdscratch.data import latents
from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.images import image_member, open_image, to_pil
from sdscratch.data.index import ShardIndex
from sdscratch.data.shards import Members
from sdscratch.errors import DataError

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

SHOWN = 24


def contact(path: Path, vae: AutoencoderKL | None = None) -> tuple[list[Image.Image], list[str]]:
    """Pictures, evenly spread over the folder, with a caption each. Latents are decoded by `vae`; without it, none."""
    index = ShardIndex.open(path)
    if index.kind == "latents" and vae is None:
        return [], []
    if vae is not None and index.kind == "latents":
        from sdscratch.models.encoders import fingerprint

        index.require_vae(fingerprint(vae))
    pictures, captions = list[Image.Image](), list[str]()
    for place in range(min(SHOWN, len(index))):
        members = index.read(place * len(index) // min(SHOWN, len(index)))
        with suppress(DataError):  # `data verify` names it
            pictures.append(_picture(members, vae))
            captions.append(next(iter(captions_of(members, record_of(members))), "(no caption)"))
    return pictures, captions


def _picture(members: Members, vae: AutoencoderKL | None) -> Image.Image:
    if "latent.npy" not in members or vae is None:
        return open_image(image_member(members))
    import torch

    mean = torch.from_numpy(latents.unpack(members["latent.npy"])[0, 0].astype("float32"))
    with torch.no_grad():
        return to_pil(vae.decode(mean[None]).sample[0])

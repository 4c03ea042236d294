"""Samples for tiny real shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import numpy as np
import torch
from PIL import Image

from sdscratch.data.latents import pack
from sdscratch.data.shards import Members


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def picture(number: int, size: tuple[int, int] = (12, 10)) -> Image.Image:
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def record(number: int, captions: int = 2) -> bytes:
    fields = {"captions": [f"{number} in wording {k}" for k in range(captions)], "source": "test", "licence": "CC0-1.0"}
    return json.dumps(fields).encode()


def image_samples(count: int) -> Iterator[tuple[str, Members]]:
    for number in range(count):
        yield f"{number:06d}", {"png": encode(picture(number)), "json": record(number), "txt": b"not this one"}


def latent_samples(count: int) -> Iterator[tuple[str, Members]]:
    for number in range(count):
        moments = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(number))
        yield f"{number:06d}", {"latent.npy": pack(moments), "json": record(number)}

"""Pictures as they travel: data URIs of a PNG that says what it was drawn with, or of a small WebP."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from PIL import Image

from sdscratch.data.images import png

QUICK = 3  # zlib's level: nearly as small as its usual 6, in half the time
FEW = 100  # pixels along the longer side


def png_uri(image: Image.Image, about: Mapping[str, Any]) -> str:
    """about: goes into the file's text, as that of `sdscratch sample`."""
    return f"data:image/png;base64,{b64encode(png(image, about, QUICK)).decode()}"


def glance_uri(image: Image.Image) -> str:
    """Small, for a glance; without loss where it is of so few pixels that one would see it."""
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=max(image.size) < FEW, quality=85, method=0)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"

"""Pictures as they travel: data URIs of a PNG that says what it was drawn with, or of a small JPEG."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Mapping
from typing import Any

from PIL import Image

from sdscratch.data.images import png

QUICK = 3  # zlib's level: nearly as small as its usual 6, in half the time


def png_uri(image: Image.Image, about: Mapping[str, Any]) -> str:
    """about: goes into the file's text, as that of `sdscratch sample`."""
    return f"data:image/png;base64,{b64encode(png(image, about, QUICK)).decode()}"


def jpeg_uri(image: Image.Image) -> str:
    """Small, for a glance. In full colour resolution, for it may be of a few pixels."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{b64encode(file.getvalue()).decode()}"

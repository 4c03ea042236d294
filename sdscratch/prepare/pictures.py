"""The form in which pictures are stored: their size, their crop, their format. Bytes in, bytes out."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Literal, NamedTuple, get_args

import imagehash
import numpy as np
from PIL import Image

from sdscratch.data.images import FORMATS, open_image
from sdscratch.errors import ConfigError, DataError, check_whole
from sdscratch.prepare.refusal import Refused

Crop = Literal["none", "centre", "smart"]
Format = Literal["jpg", "webp", "png"]

LONGEST = 16_383  # pixels of a side that all formats can hold
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
_ORIENTATION = 0x0112  # of EXIF: 1 is upright, from 5 on width and height change places

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, for every other picture; what matters is raised


class Picture(NamedTuple):
    """A picture as it is stored, and what it was: its perceptual hash is 16 hexadecimal digits."""

    suffix: str
    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int
    phash: str


@dataclass(frozen=True)
class Form:
    """How pictures are stored.

    size: pixels of the shorter side; larger pictures are reduced to it, smaller ones kept, unless `enlarge`. min_size:
    pictures whose shorter side has fewer pixels are refused. crop: the whole picture (none), the square in its centre,
    or the one with most edges in it (smart). format, quality: of what is written anew. keep_bytes: an original of at
    most so many bytes is kept as it is where nothing needs to change; 0 writes all anew.
    """

    size: int = 512
    min_size: int = 256
    enlarge: bool = False
    crop: Crop = "none"
    format: Format = "jpg"
    quality: int = 95
    keep_bytes: int = 1_000_000

    def __post_init__(self) -> None:
        check_whole("size", self.size)
        check_whole("min_size", self.min_size)
        check_whole("quality", self.quality, least=1, most=100)
        check_whole("keep_bytes", self.keep_bytes, least=0)
        for name, known in {"crop": get_args(Crop), "format": get_args(Format)}.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name}={getattr(self, name)!r} is unknown; expected {', '.join(known)}")

    def store(self, data: bytes) -> Picture:
        """The picture in this form. The same bytes give the same bytes. Raises Refused."""
        try:
            upright = open_image(data, at_least=self.size)
        except DataError as error:
            raise Refused("not decodable", str(error)) from error
        suffix, original, is_plain = _header(data)
        if min(original) < self.min_size:
            raise Refused("too small", f"{original[0]}x{original[1]}")
        shorter = min(original) if min(original) < self.size and not self.enlarge else self.size
        if self.crop == "none":
            width, height = (max(round(length * shorter / min(original)), 1) for length in original)
        else:
            width = height = shorter
        if max(width, height) > LONGEST:
            raise Refused("too long", f"{original[0]}x{original[1]}")

        if is_plain and (width, height) == original and len(data) <= self.keep_bytes:
            stored = upright
        else:
            stored = upright.resize(
                (width, height), Image.Resampling.LANCZOS, box=_square(upright, self.crop), reducing_gap=3.0
            )
            suffix, data = self.format, self._encoded(stored)
        return Picture(suffix, data, width, height, *original, str(imagehash.phash(stored)))

    def _encoded(self, image: Image.Image) -> bytes:
        image.info = {}  # colour profiles and the like belong to the original
        file = BytesIO()
        image.save(file, _PILLOW[self.format], quality=self.quality)
        return file.getvalue()


def _header(data: bytes) -> tuple[str, tuple[int, int], bool]:
    """Its suffix; its upright size; and whether every reader sees the same in it: upright, opaque, a single frame."""
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        orientation = image.getexif().get(_ORIENTATION, 1)
        turned = orientation in range(5, 9)
        size = (image.height, image.width) if turned else image.size
        single = getattr(image, "n_frames", 1) == 1 and "transparency" not in image.info
        is_plain = image.mode in ("RGB", "L") and single and orientation not in range(2, 9)
        return _SUFFIXES[str(image.format)], size, is_plain


def _square(image: Image.Image, crop: Crop) -> tuple[int, int, int, int]:
    """What is kept of a picture: left, top, right, bottom in its pixels."""
    (width, height), side = image.size, min(image.size)
    if crop == "none":
        return 0, 0, width, height
    place = 0.5 if crop == "centre" else _busiest(image)
    left, top = int(place * (width - side) + 0.5), int(place * (height - side) + 0.5)
    return left, top, left + side, top + side


def _busiest(image: Image.Image) -> float:
    """Where the square with most edges lies along the longer side, from 0 (left, top) to 1; the most central of equals."""
    scale = 64 / min(image.size)
    small = image.convert("L").resize([max(round(length * scale), 64) for length in image.size], reducing_gap=2.0)
    grey = np.asarray(small, dtype=np.int64)
    grey = grey if grey.shape[1] >= grey.shape[0] else grey.T  # the longer side is the last one
    edges = np.abs(np.diff(grey, axis=0)).sum(axis=0)
    edges[1:] += np.abs(np.diff(grey, axis=1)).sum(axis=0)
    sums = np.convolve(edges, np.ones(64, dtype=np.int64), mode="valid")
    places = np.flatnonzero(sums == sums.max())
    middle = (len(sums) - 1) / 2
    return float(places[np.abs(places - middle).argmin()]) / max(len(sums) - 1, 1)

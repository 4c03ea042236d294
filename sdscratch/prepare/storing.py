"""From a picture as it was published to the one that is stored: checked, cut out, made smaller; else the same bytes."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from sdscratch.data.images import FORMATS, open_image
from sdscratch.errors import ConfigError, DataError, check_whole

_SUFFIXES = {"PNG": "png", "WEBP": "webp"}  # all else that is let in is a kind of JPEG
_TURNED = (5, 6, 7, 8)  # EXIF orientations that exchange width and height


class Box(NamedTuple):
    """A rectangle in a picture, in pixels from its left and top edges."""

    left: float
    top: float
    width: float
    height: float


class Picture(NamedTuple):
    """A picture as it is stored. suffix: of its member. The sizes are those of the upright picture, in pixels."""

    suffix: str
    data: bytes
    width: int
    height: int
    original_width: int
    original_height: int


class TooSmall(DataError):
    """There is nothing wrong with the picture but its size."""


@dataclass(frozen=True)
class Pictures:
    """How pictures are stored.

    min_side: pixels of the shorter side, of what is cut out, that a picture must have. resize: pixels that the shorter
    side is reduced to, the aspect ratio kept; None leaves it, and nothing is ever enlarged. quality: of JPEGs that are
    written anew, 1 to 100.
    """

    min_side: int = 1
    resize: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        check_whole("min_side", self.min_side)
        check_whole("quality", self.quality, most=100)
        if self.resize is not None:
            check_whole("resize", self.resize)
            if self.resize < self.min_side:
                raise ConfigError(f"resize={self.resize} is below min_side={self.min_side}. Set resize higher.")

    def store(self, data: bytes, box: Box | None = None, margin: float = 0.0) -> Picture:
        """The bytes to store for a picture, or for what `square_around` finds around a box in it.

        Raises TooSmall, or DataError saying what is wrong with the bytes or the box.
        """
        image = open_image(data, at_least=self.resize if box is None else None)
        format, original = _header(data)
        width, height = original
        if box is not None:
            left, top, right, bottom = square_around(box, original, margin)
            width, height = right - left, bottom - top
            image = image.crop((left, top, right, bottom))
        if min(width, height) < self.min_side:
            raise TooSmall(f"{width}x{height} pixels, expected a shorter side of at least {self.min_side}")
        scale = min(1.0, (self.resize or min(width, height)) / min(width, height))
        if box is None and scale == 1.0:
            return Picture(_SUFFIXES.get(format, "jpg"), data, *original, *original)
        if scale < 1.0:
            width, height = round(width * scale), round(height * scale)
            image = image.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
        return Picture("jpg", self._jpeg(image), width, height, *original)

    def _jpeg(self, image: Image.Image) -> bytes:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=self.quality, subsampling=0 if self.quality >= 95 else 2)
        return file.getvalue()


def square_around(box: Box, size: tuple[int, int], margin: float) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the square around a box, in a picture of `size` = (width, height).

    Its side is the longer one of the box, and `margin` of it on each side. It is moved into the picture, and where the
    picture is too narrow for it, cut at its edges: so a later crop of the centre keeps as much of the box as can be.
    Raises DataError for a box that is not in the picture.
    """
    width, height = size
    inside = box.width > 0 and box.height > 0 and -box.width < box.left < width and -box.height < box.top < height
    if not inside or not all(map(math.isfinite, box)):
        raise DataError(f"its box {tuple(round(value, 1) for value in box)} is not in the {width}x{height} picture")
    side = max(box.width, box.height) * (1 + 2 * margin)
    left, right = _span(box.left + box.width / 2, side, width)
    top, bottom = _span(box.top + box.height / 2, side, height)
    return left, top, right, bottom


def _span(centre: float, side: float, length: int) -> tuple[int, int]:
    whole = min(max(1, round(side)), length)
    start = min(max(0, round(centre - side / 2)), length - whole)
    return start, start + whole


def _header(data: bytes) -> tuple[str, tuple[int, int]]:
    """Format, and (width, height) of the upright picture, of bytes that `open_image` has taken."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        width, height = image.size
        turned = image.getexif().get(0x0112) in _TURNED
    return str(image.format), (height, width) if turned else (width, height)

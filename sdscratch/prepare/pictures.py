"""From a picture as it was published to the one that is stored: cut out, made smaller, written anew; else the same bytes."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple, get_args

import imagehash
from PIL import Image

from sdscratch.data.images import FORMATS, ORIENTATION, open_image
from sdscratch.errors import DataError, check_choice, check_whole
from sdscratch.prepare.crops import Box, Crop, square_around, square_in
from sdscratch.prepare.refusal import Refused

Format = Literal["jpg", "webp", "png"]

LONGEST = 16_383  # pixels of a side that all formats can hold
_SUFFIXES = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_PILLOW = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}

warnings.filterwarnings("ignore", module=r"PIL\.")  # of odd metadata, for every other picture; what matters is raised


class Picture(NamedTuple):
    """A picture as it is stored, and what it was. md5: of the bytes it was made from. phash: 16 hexadecimal digits."""

    suffix: str
    data: bytes
    md5: str
    phash: str
    width: int
    height: int
    original_width: int
    original_height: int

    def known(self) -> dict[str, Any]:
        """What a sample's record says of it."""
        return {name: value for name, value in self._asdict().items() if name not in ("suffix", "data")}


@dataclass(frozen=True)
class Form:
    """How pictures are stored.

    size: pixels of the shorter side; larger pictures are reduced to it, smaller ones kept, unless `enlarge`; None leaves
    all as large as they are. min_size: pictures whose shorter side has fewer pixels before are refused. crop: the whole
    picture ("none"), the square in its centre, or the one with most edges in it ("smart"). format, quality: of what is
    written anew. keep_bytes: an original of at most so many bytes is kept as it is where nothing needs to change: 0
    writes all anew, None keeps originals of any size.
    """

    size: int | None = None
    min_size: int = 1
    enlarge: bool = False
    crop: Crop = "none"
    format: Format = "jpg"
    quality: int = 95
    keep_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.size is not None:
            check_whole("pictures.size", self.size)
        check_whole("pictures.min_size", self.min_size)
        check_choice("pictures.crop", self.crop, get_args(Crop))
        check_choice("pictures.format", self.format, get_args(Format))
        check_whole("pictures.quality", self.quality, least=1, most=100)
        if self.keep_bytes is not None:
            check_whole("pictures.keep_bytes", self.keep_bytes, least=0)

    def store(self, data: bytes, box: Box | None = None, margin: float = 0.0) -> Picture:
        """The picture, or what `square_around` finds around a box in it, in this form. The same bytes give the same bytes.

        Raises Refused for what cannot be decoded or lacks the box ("not decodable"), is "too small" or "too long".
        """
        try:
            image = open_image(data, at_least=self.size if box is None else None)
            suffix, original, is_plain = _header(data)
            if box is not None:
                image = image.crop(square_around(box, original, margin))
        except DataError as error:
            raise Refused("not decodable", str(error)) from error
        before = original if box is None else image.size
        if min(before) < self.min_size:
            said = f"{before[0]}x{before[1]} pixels, expected a shorter side of at least {self.min_size}"
            raise Refused("too small", said)
        width, height = self._size(before)
        if max(width, height) > LONGEST:
            raise Refused("too long", f"{before[0]}x{before[1]} pixels")

        md5 = hashlib.md5(data).hexdigest()
        fits = (width, height) == original and (self.keep_bytes is None or len(data) <= self.keep_bytes)
        if not (box is None and is_plain and fits):
            image = image.resize(
                (width, height), Image.Resampling.LANCZOS, box=square_in(image, self.crop), reducing_gap=3.0
            )
            suffix, data = self.format, self._encoded(image)
        return Picture(suffix, data, md5, str(imagehash.phash(image)), width, height, *original)

    def _size(self, before: tuple[int, int]) -> tuple[int, int]:
        """What becomes of a picture of so many pixels: (width, height)."""
        shorter = self.size or min(before)
        if not self.enlarge:
            shorter = min(shorter, min(before))
        if self.crop != "none":
            return shorter, shorter
        width, height = (max(round(length * shorter / min(before)), 1) for length in before)
        return width, height

    def _encoded(self, image: Image.Image) -> bytes:
        image.info = {}  # colour profiles and the like belong to the original
        file = BytesIO()
        colours = {"subsampling": 0} if self.format == "jpg" and self.quality >= 95 else {}  # as fine as brightness
        image.save(file, _PILLOW[self.format], quality=self.quality, **colours)
        return file.getvalue()


def _header(data: bytes) -> tuple[str, tuple[int, int], bool]:
    """Its suffix; its upright size; and whether every reader sees the same in it: upright, opaque, a single frame."""
    with Image.open(BytesIO(data), formats=FORMATS) as image:
        orientation = image.getexif().get(ORIENTATION, 1)  # 1 is upright, from 5 on width and height change places
        size = (image.height, image.width) if orientation in range(5, 9) else image.size
        single = getattr(image, "n_frames", 1) == 1 and "transparency" not in image.info
        is_plain = image.mode in ("RGB", "L") and single and orientation not in range(2, 9)
        return _SUFFIXES[str(image.format)], size, is_plain

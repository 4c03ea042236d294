"""From the bytes of a picture to what a network sees, and back: the one way for training, evaluation and sampling."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from sdscratch.errors import ConfigError, DataError, check_whole

if TYPE_CHECKING:  # what only looks at pictures starts without it
    from torch import Tensor

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_SIDE = 8192
MAX_PIXELS = MAX_SIDE**2  # 200 MB decoded; larger pictures are refused at their header
SPARE_PIXELS = 3.0  # per final pixel and direction, for LANCZOS to reduce from where something faster has begun
ORIENTATION = 0x0112  # EXIF's

# What Pillow warns of is an error here. Said once and for all: a filter for a while would be one for all threads that decode.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
_SUFFIXES = ("jpg", "jpeg", "png", "webp")


def check_resolution(resolution: int, factor: int, setting: str = "resolution") -> None:
    """Raise ConfigError, about `setting`, unless a VAE that shrinks by `factor` can take squares of `resolution` pixels."""
    check_whole(setting, resolution, most=MAX_SIDE)
    if resolution < factor or resolution % factor:
        below = max(resolution // factor, 1) * factor
        raise ConfigError(
            f"{setting}={resolution} is not divisible by the VAE's factor {factor}. "
            f"Set it to {below} or {below + factor}."
        )


def image_member(members: Mapping[str, bytes]) -> bytes:
    """The picture among the members of a sample. Raises DataError when there is none."""
    for suffix in _SUFFIXES:
        if suffix in members:
            return members[suffix]
    raise DataError(f"it has no image: expected a member of {', '.join(_SUFFIXES)}, found {', '.join(members)}")


def open_image(data: bytes, at_least: int | None = None) -> Image.Image:
    """Decode a JPEG, PNG or WebP into 8-bit RGB, upright by its EXIF orientation, on white where it is transparent.

    The first frame of an animation. at_least: pixels that the shorter side will be scaled to; a much larger JPEG is then
    decoded at a half, quarter or eighth of its size. Raises DataError saying what is wrong with the bytes.
    """
    return _decode(data, at_least).image


class _Decoded(NamedTuple):
    """An upright picture that was decoded at one `reduction`th of its `size`; its last pixels may be partly beyond it."""

    image: Image.Image
    size: tuple[int, int]
    reduction: int = 1


def _decode(data: bytes, at_least: int | None) -> _Decoded:
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DataError(f"the image has {image.width}x{image.height} pixels, allowed are {MAX_PIXELS} in all")
            size, reduction = image.size, 1
            if at_least is not None and image.getexif().get(ORIENTATION, 1) == 1:
                needed = int(SPARE_PIXELS * at_least)
                if (draft := image.draft(None, (needed, needed))) is not None:
                    reduction = round(size[0] / draft[1][2])
            image.load()
            upright = as_rgb(image)
            return _Decoded(upright, size if reduction > 1 else upright.size, reduction)
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(f"the image is none of {', '.join(FORMATS)}") from error
    except Exception as error:  # decoders of hostile bytes raise nearly anything
        reason = " ".join(str(error).split())
        raise DataError(f"the image cannot be decoded ({type(error).__name__}: {reason})") from error


def fit(image: Image.Image, resolution: int, crop: tuple[float, float] = (0.5, 0.5), flip: bool = False) -> Image.Image:
    """Scale the shorter side to `resolution` and crop to a square, in one resampling (LANCZOS).

    crop: which square, from (0, 0) at the left and top to (1, 1); (0.5, 0.5) is the centre. flip: mirror left-right.
    """
    return _fit(_Decoded(image, image.size), resolution, crop, flip)


def _fit(decoded: _Decoded, resolution: int, crop: tuple[float, float], flip: bool) -> Image.Image:
    """The square is found in the full picture, so that it is the same at every reduction."""
    image, size, reduction = decoded
    side = min(size)
    left, top = (int(u * (length - side) + 0.5) for u, length in zip(crop, size, strict=True))
    box = (left / reduction, top / reduction, (left + side) / reduction, (top + side) / reduction)
    square = image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box, reducing_gap=SPARE_PIXELS)
    return square.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else square


def to_tensor(image: Image.Image) -> Tensor:
    """8-bit RGB -> float32 (3, H, W) in [-1, 1]."""
    import torch

    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1).contiguous().float() / 127.5 - 1


def to_pil(image: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1], clipped -> 8-bit RGB; the exact inverse of `to_tensor`."""
    import torch

    pixels = ((image.detach().float().cpu() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def preprocess(
    data: bytes | Image.Image, resolution: int, crop: tuple[float, float] = (0.5, 0.5), flip: bool = False
) -> Tensor:
    """A picture as a network sees it: float32 (3, resolution, resolution) in [-1, 1]. Raises DataError, as above."""
    if isinstance(data, bytes):
        return to_tensor(_fit(_decode(data, at_least=resolution), resolution, crop, flip))
    return to_tensor(fit(as_rgb(data), resolution, crop, flip))


def as_rgb(image: Image.Image) -> Image.Image:
    """The picture as 8-bit RGB, upright by its EXIF orientation, on white where it is transparent."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey, which `convert` would clip to white
        grey = np.asarray(image).astype(np.int64).clip(0, 65535)
        return Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def png(image: Image.Image, about: Mapping[str, object], compress_level: int = 6) -> bytes:
    """A PNG file whose text says `about`. compress_level: zlib's."""
    text, file = PngInfo(), io.BytesIO()
    for name, value in about.items():
        text.add_text(name, str(value))
    image.save(file, "PNG", pnginfo=text, compress_level=compress_level)
    return file.getvalue()

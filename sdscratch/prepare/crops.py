"""What is cut out of a picture: the square around a box, the one in its centre, or the one with most edges in it."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from sdscratch.errors import ConfigError, DataError

Crop = Literal["none", "centre", "smart"]
WIDEST = 100  # times the box: a margin beyond it is the whole picture in any case


class Box(NamedTuple):
    """A rectangle in a picture, in pixels from its left and top edges."""

    left: float
    top: float
    width: float
    height: float


def check_margin(margin: float) -> None:
    """Raise ConfigError unless it is a share of a box that `square_around` can add."""
    if not 0 <= margin <= WIDEST:
        raise ConfigError(f"margin is {margin}: expected a share of the box, from 0 to {WIDEST}")


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


def square_in(image: Image.Image, crop: Crop) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the largest square: in the centre, or where most edges are; of everything for "none"."""
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

"""Reads colour, shape, position and background back from the pixels of a drawn scene. Nothing in it is learned.

The background is what the border agrees on, the object is what differs from it, and the shape is the one that, drawn
again where the object was found and as large, gives the most similar mask. What cannot be read is None, and None never
scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from sdscratch.data.shapes import BACKGROUNDS, COLOURS, PLACES, SHAPES, Scene, coverage

SIDE = 32  # every picture is read at this size
ATTRIBUTES = ("colour", "shape", "position", "background")

FARTHEST = 0.3  # from a palette colour, in RGB of [0, 1]; the palette's own are 0.39 apart or more
ALIKE = 0.2  # as near to its median ...
AGREEING = 0.75  # ... must be this share of the border, and of the object's core
FAINTEST = 0.2  # least difference of an object from the background
REACH = 0.36  # as near to its centroid ...
WITHIN_REACH = 0.9  # ... must be this share of the mask: else there are several things
DIAMETERS = (0.3, 0.7)  # of shapes that are told apart; drawn ones have 0.44 to 0.5
LEAST_MATCH = 0.95  # least correlation of mask and drawn shape; a diamond has 0.945 with a blurred cross
LEAST_LEAD = 0.01  # over the second best shape; drawn ones have 0.026, blurred by a pixel 0.014
SCALES = (0.85, 0.92, 1.0, 1.08)  # tried around the measured diameter, which blur makes too large
BLURS = (0.0, 0.7, 1.4)  # tried, as the standard deviation in pixels of SIDE


@dataclass(frozen=True)
class Verdict:
    """What was read, None where nothing could be; `match` is the best shape's correlation with the mask, at most 1."""

    colour: str | None
    shape: str | None
    position: str | None
    background: str | None
    match: float = 0.0


def judge(image: Image.Image) -> Verdict:
    """Read one square picture."""
    pixels = np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64) / 255
    border = np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])
    behind, agreed = _median(border)
    if not agreed:
        return Verdict(None, None, None, None)
    background = _nearest(behind, BACKGROUNDS)

    difference = np.linalg.norm(pixels - behind, axis=2)
    strongest = np.sort(difference, axis=None)[-SIDE * SIDE // 50 :].mean()
    if strongest < FAINTEST:
        return Verdict(None, None, None, background)
    core = difference > 0.85 * strongest
    seen, agreed = _median(pixels[core])
    colour = _nearest(seen, COLOURS) if agreed else None
    mask = _steeper(difference / np.median(difference[core]))

    middles = (np.arange(SIDE) + 0.5) / SIDE
    centroid = np.array([mask.sum(axis=0) @ middles, mask.sum(axis=1) @ middles]) / mask.sum()
    near = np.hypot(middles[None, :] - centroid[0], middles[:, None] - centroid[1]) < REACH
    if mask[near].sum() < WITHIN_REACH * mask.sum():
        return Verdict(None, None, None, background)

    matches = _matches(mask, centroid)
    shape = max(matches, key=matches.__getitem__)
    second, match = sorted(matches.values())[-2:]
    return Verdict(
        colour=colour,
        shape=shape if match >= LEAST_MATCH and match - second >= LEAST_LEAD else None,
        position=min(PLACES, key=lambda place: float(np.hypot(*(centroid - PLACES[place][:2])))),
        background=background,
        match=match,
    )


def score(images: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
    """The fractions of `images` that show what `scenes` ask for: by attribute, and `all` four at once."""
    if len(images) != len(scenes) or not images:
        raise ValueError(f"{len(images)} images for {len(scenes)} scenes: there must be as many, and at least one.")
    right = np.array(
        [
            [getattr(verdict, name) == getattr(scene, name) for name in ATTRIBUTES]
            for verdict, scene in zip(map(judge, images), scenes, strict=True)
        ]
    )
    return {**dict(zip(ATTRIBUTES, right.mean(axis=0).tolist(), strict=True)), "all": float(right.all(axis=1).mean())}


def _median(colours: np.ndarray) -> tuple[np.ndarray, bool]:
    """The median of `colours` (n, 3), and whether enough of them are like it."""
    median = np.median(colours, axis=0)
    return median, bool(np.mean(np.linalg.norm(colours - median, axis=1) < ALIKE) >= AGREEING)


def _nearest(colour: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette's name for `colour` (3,) in [0, 1], None where it is farther than FARTHEST from all."""
    distances = np.linalg.norm(colour - np.array(list(palette.values())) / 255, axis=1)
    return list(palette)[distances.argmin()] if distances.min() <= FARTHEST else None


def _steeper(mask: np.ndarray) -> np.ndarray:
    """Steeper around one half, so that noise goes and outlines stay where they were."""
    return np.clip(2 * mask - 0.5, 0, 1)


def _moments(shape: str) -> tuple[float, float]:
    """Area of the shape of diameter 1, and how far below its centre its centroid lies."""
    drawn = coverage(shape, 0.5, 0.5, 0.5, 256)
    return 4 * float(drawn.mean()), 2 * float(drawn.sum(axis=1) @ ((np.arange(256) + 0.5) / 256 - 0.5) / drawn.sum())


def _blur(deviation: float) -> np.ndarray:
    """The matrix that blurs a row of SIDE pixels."""
    if deviation == 0:
        return np.eye(SIDE)
    pixels = np.arange(SIDE)
    weights = np.exp(-((pixels[:, None] - pixels[None, :]) ** 2) / (2 * deviation**2))
    return weights / weights.sum(axis=1, keepdims=True)


MOMENTS = {shape: _moments(shape) for shape in SHAPES}
BLUR_MATRICES = np.stack([_blur(deviation) for deviation in BLURS]).astype(np.float32)[:, None]


def _matches(mask: np.ndarray, centroid: np.ndarray) -> dict[str, float]:
    """The best correlation of `mask` (SIDE, SIDE) with each shape drawn at its centroid, about as large."""
    flat = mask.ravel() - mask.mean()
    flat /= np.linalg.norm(flat)
    matches = {}
    for shape, (area, below) in MOMENTS.items():
        measured = np.sqrt(mask.mean() / area)
        if not DIAMETERS[0] <= measured <= DIAMETERS[1]:
            matches[shape] = 0.0
            continue
        diameters = measured * np.array(SCALES)
        sharp = coverage(shape, centroid[0], centroid[1] - below * diameters, diameters, SIDE).astype(np.float32)
        blurred = BLUR_MATRICES @ sharp @ BLUR_MATRICES.swapaxes(2, 3)
        drawn = blurred.reshape(-1, flat.size)
        drawn = _steeper(drawn / drawn.max(axis=1, keepdims=True))
        drawn -= drawn.mean(axis=1, keepdims=True)
        matches[shape] = float((drawn @ flat / np.linalg.norm(drawn, axis=1)).max())
    return matches

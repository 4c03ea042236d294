"""The embedded data set: drawn, captioned scenes of colour x shape x position x background.

It needs no download and has no licence, and every attribute that a caption names can be read back from the pixels, so
that following a prompt is measured rather than guessed. Lengths are fractions of the picture's side, y points down.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from sdscratch import randomness
from sdscratch.console import say
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import UNFINISHED, write_shards
from sdscratch.errors import DataError, check_whole

Split = Literal["train", "val", "unseen"]

COLOURS = {
    "red": (220, 25, 30),
    "green": (20, 150, 45),
    "blue": (30, 60, 220),
    "yellow": (250, 225, 30),
    "purple": (115, 25, 165),
    "orange": (250, 120, 0),
    "cyan": (0, 205, 225),
    "pink": (255, 100, 190),
}
BACKGROUNDS = {"white": (250, 250, 250), "black": (8, 8, 8), "grey": (128, 128, 128), "tan": (215, 185, 145)}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
PLACES = {  # word: (x, y, phrase)
    "top": (0.5, 0.3, "at the top"),
    "left": (0.3, 0.5, "on the left"),
    "centre": (0.5, 0.5, "in the centre"),
    "right": (0.7, 0.5, "on the right"),
    "bottom": (0.5, 0.7, "at the bottom"),
}
POSITIONS = tuple(PLACES)
HELD_OUT = frozenset(  # every colour once, every shape once or twice
    {
        ("red", "triangle"),
        ("green", "ring"),
        ("blue", "square"),
        ("yellow", "cross"),
        ("purple", "circle"),
        ("orange", "square"),
        ("cyan", "triangle"),
        ("pink", "cross"),
    }
)
SEEN = tuple((colour, shape) for colour in COLOURS for shape in SHAPES if (colour, shape) not in HELD_OUT)

SHIFT = 0.03  # largest shift of the centre from its place: 1 px of 32
DIAMETERS = (0.44, 0.5)  # 14.1 to 16 px of 32, so that nothing leaves the picture
EDITION = 2  # of what scene_at draws: folders of another one are neither reused nor mixed with these
TINT = 10.0  # largest change of the object's red, green and blue, of 255


@dataclass(frozen=True)
class Scene:
    """What the caption says, and below it what no caption says."""

    colour: str
    shape: str
    position: str
    background: str
    shift: tuple[float, float] = (0.0, 0.0)  # of the centre, right and down
    diameter: float = 0.47
    tint: tuple[float, float, float] = (0.0, 0.0, 0.0)  # added to red, green, blue of 255


def scene_at(seed: int, split: Split, i: int) -> Scene:
    """Scene number `i` >= 0 of a split without end: "val" draws from the pairs of "train", "unseen" from HELD_OUT."""
    if split not in get_args(Split):
        raise DataError(f"shapes has no split {split!r}; it has {', '.join(get_args(Split))}.")
    rng = np.random.Generator(np.random.Philox(randomness.key(seed, f"shapes/{split}", i)))
    pairs = sorted(HELD_OUT) if split == "unseen" else SEEN
    colour, shape = pairs[rng.integers(len(pairs))]
    return Scene(
        colour=colour,
        shape=shape,
        position=POSITIONS[rng.integers(len(POSITIONS))],
        background=tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))],
        shift=tuple(rng.uniform(-SHIFT, SHIFT, 2).tolist()),
        diameter=float(rng.uniform(*DIAMETERS)),
        tint=tuple(rng.uniform(-TINT, TINT, 3).tolist()),
    )


def signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the outline of the shape of diameter 1 around the origin, negative inside (at corners: at least)."""
    across, down = np.abs(x), np.abs(y)
    match shape:
        case "circle":
            return np.hypot(x, y) - 0.5
        case "ring":
            return np.abs(np.hypot(x, y) - 0.38) - 0.12
        case "square":
            return np.maximum(across, down) - 0.44
        case "cross":
            return np.maximum(np.minimum(across, down) - 0.16, np.maximum(across, down) - 0.5)
        case "triangle":
            apex, base, half_width = -0.54, 0.36, 0.52
            height = base - apex
            side = (height * across - half_width * (y - apex)) / np.hypot(height, half_width)
            return np.maximum(side, y - base)
    raise DataError(f"shapes cannot draw a {shape!r}; it draws {', '.join(SHAPES)}.")


def coverage(shape: str, x: ArrayLike, y: ArrayLike, diameter: ArrayLike, size: int) -> np.ndarray:
    """How much of each pixel lies inside the shape centred at x, y, in [0, 1]: (..., size, size) for numbers (...)."""
    x, y, diameter = (np.asarray(number)[..., None, None] for number in (x, y, diameter))
    middles = (np.arange(size) + 0.5) / size
    distance = signed_distance(shape, (middles - x) / diameter, (middles[:, None] - y) / diameter)
    return np.clip(0.5 - distance * (diameter * size), 0.0, 1.0)


def draw(scene: Scene, size: int) -> Image.Image:
    """The scene as an RGB picture of size x size pixels, antialiased (4 x 4 samples a pixel, themselves soft)."""
    x, y, _ = PLACES[scene.position]
    fine = coverage(scene.shape, x + scene.shift[0], y + scene.shift[1], scene.diameter, 4 * size)
    inside = fine.reshape(size, 4, size, 4).mean(axis=(1, 3))[..., None]
    colour = np.clip(np.add(COLOURS[scene.colour], scene.tint), 0, 255)
    pixels = inside * colour + (1 - inside) * np.array(BACKGROUNDS[scene.background])
    return Image.fromarray(np.rint(pixels).astype(np.uint8))


def captions(scene: Scene) -> list[str]:
    """Six wordings, each with all four attributes."""
    _, _, where = PLACES[scene.position]
    thing = f"{scene.colour} {scene.shape}"
    a_thing = f"an {thing}" if scene.colour == "orange" else f"a {thing}"
    return [
        f"{a_thing} {where} on a {scene.background} background",
        f"a {scene.background} background with {a_thing} {where}",
        f"{where}, {a_thing} on a {scene.background} background",
        f"{a_thing} on a {scene.background} background, {where}",
        f"{scene.position}: {a_thing}, {scene.background} background",
        f"{scene.background} background, {thing}, {scene.position}",
    ]


def samples(split: Split, count: int, size: int, seed: int) -> Iterator[tuple[str, dict[str, bytes]]]:
    """`count` samples as (key, {extension: content}), ready for shards; the same arguments give the same bytes."""
    for i in range(count):
        scene = scene_at(seed, split, i)
        png = BytesIO()
        draw(scene, size).save(png, "PNG")
        wordings = captions(scene)
        about = {
            "captions": wordings,
            "colour": scene.colour,
            "shape": scene.shape,
            "position": scene.position,
            "background": scene.background,
            "source": "shapes",
            "licence": "none needed (generated)",
            "width": size,
            "height": size,
        }
        yield (
            f"{split}_{i:06d}",
            {"png": png.getvalue(), "txt": wordings[0].encode(), "json": json.dumps(about).encode()},
        )


SPLITS: tuple[Split, Split] = ("train", "val")  # folders of a drawing; "unseen" is only asked for
MAX_RESOLUTION = 1024  # pixels; a scene is drawn at four times its size


def write_shapes(folder: str | Path, count: int, val_count: int, resolution: int, seed: int = 0) -> list[Manifest]:
    """Draw `train/`, and `val/` of the same colour-shape pairs, into `folder`; what is there already is left alone.

    Raises DataError for a folder that holds other things, or scenes drawn with other settings.
    """
    check_whole("resolution", resolution, 1, MAX_RESOLUTION)
    _check_free(Path(folder))
    if not (Path(folder) / "val" / MANIFEST).exists():  # which is written last
        say(f"{folder}: drawing {count} training and {val_count} validation scenes of {resolution} px, once")
    return [
        write_shards(
            Path(folder) / split,
            samples(split, number, resolution, seed),
            made_by={
                "by": "shapes",
                "scenes": EDITION,
                "split": split,
                "count": number,
                "resolution": resolution,
                "seed": seed,
            },
        )
        for split, number in zip(SPLITS, (count, val_count), strict=True)
    ]


def _check_free(folder: Path) -> None:
    """Raise DataError where there is something, and it is no drawing, begun or finished.

    Another process may begin or finish one meanwhile: what is there is listed before the marks are looked for, of
    which one is there from then on, and an empty split is one that is about to be begun, or whose process was killed.
    """

    def is_empty_split(path: Path) -> bool:
        return path.name in SPLITS and path.is_dir() and not any(path.glob("[!.]*"))

    found = sorted(path.name for path in folder.glob("[!.]*") if not is_empty_split(path))
    begun = [folder / split / name for split in SPLITS for name in (UNFINISHED, MANIFEST)]
    if found and not any(path.exists() for path in begun):
        raise DataError(
            f"{folder} holds other things already ({', '.join(found[:3])}{', ...' if found[3:] else ''}). Scenes are drawn "
            "into a folder of their own: choose one that is new or empty."
        )


def prompts(split: Split, count: int, seed: int) -> list[tuple[str, Scene]]:
    """A fixed list of prompts, each in one of its wordings, with the scene it asks for."""
    scenes = [scene_at(seed, split, i) for i in range(count)]
    wording = [randomness.key(seed, f"shapes/{split}/wording", i) for i in range(count)]
    return [
        (choices[w % len(choices)], s) for s, w, choices in zip(scenes, wording, map(captions, scenes), strict=True)
    ]

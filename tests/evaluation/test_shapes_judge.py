from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sdscratch.data.shapes import BACKGROUNDS, COLOURS, POSITIONS, SHAPES, Scene, draw, scene_at
from sdscratch.evaluation.shapes_judge import ATTRIBUTES, Verdict, judge, score

RED_CIRCLE = Scene("red", "circle", "centre", "white")


PERFECT = dict.fromkeys((*ATTRIBUTES, "all"), 1.0)


def every_combination(seed: int) -> list[Scene]:
    """Each of the 800 scenes once, with its own shift, diameter and tint."""
    return [
        replace(scene_at(seed, "train", i), colour=colour, shape=shape, position=position, background=background)
        for i, (colour, shape, position, background) in enumerate(product(COLOURS, SHAPES, POSITIONS, BACKGROUNDS))
    ]


def worn(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Blurred by 0.6 px of 32, with noise of standard deviation 8 of 255."""
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.6 * image.width / 32)))
    return picture(pixels + rng.normal(0, 8, pixels.shape))


def picture(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8))


def together(*scenes: Scene) -> Image.Image:
    """The objects of several scenes of one background; later ones lie in front."""
    behind = np.array(BACKGROUNDS[scenes[0].background])
    pixels = np.asarray(draw(scenes[0], 32))
    for scene in scenes[1:]:
        front = np.asarray(draw(scene, 32))
        pixels = np.where(np.abs(front - behind.astype(float)).sum(axis=2, keepdims=True) > 30, front, pixels)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(("size", "seed"), [(32, 0), (32, 1), (64, 2)])
def test_every_combination_freshly_drawn_is_read_without_a_mistake(size, seed):
    scenes = every_combination(seed)
    assert score([draw(scene, size) for scene in scenes], scenes) == PERFECT


@pytest.mark.parametrize("size", [32, 64])
def test_blur_and_noise_cost_less_than_a_hundredth(size):
    scenes, rng = every_combination(3)[::4], np.random.default_rng(0)
    scores = score([worn(draw(scene, size), rng) for scene in scenes], scenes)
    assert min(scores.values()) >= 0.99


@pytest.mark.parametrize(
    ("attribute", "words"),
    [("colour", COLOURS), ("shape", SHAPES), ("position", POSITIONS), ("background", BACKGROUNDS)],
)
def test_another_attribute_costs_precisely_that_attribute(attribute, words):
    asked = [replace(scene_at(0, "val", i), **{attribute: word}) for i, word in enumerate(words)]
    shown = [
        replace(scene, **{attribute: word}) for scene, word in zip(asked, [*words][1:] + [*words][:1], strict=True)
    ]
    assert score([draw(scene, 32) for scene in shown], asked) == {**PERFECT, attribute: 0.0, "all": 0.0}


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_an_empty_picture_has_a_background_and_nothing_else(background):
    blank = Image.new("RGB", (32, 32), BACKGROUNDS[background])
    assert judge(blank) == Verdict(None, None, None, background)


def test_an_empty_picture_of_an_objects_colour_has_nothing():
    assert judge(Image.new("RGB", (32, 32), COLOURS["red"])) == Verdict(None, None, None, None)


def test_noise_has_nothing():
    rng = np.random.default_rng(0)
    for size in (32, 64):
        for _ in range(20):
            verdict = judge(picture(rng.uniform(0, 255, (size, size, 3))))
            assert (verdict.colour, verdict.shape, verdict.position) == (None, None, None)


@pytest.mark.parametrize("other", ["red", "blue"])
def test_two_objects_far_apart_are_not_one(other):
    left, right = replace(RED_CIRCLE, position="left"), replace(RED_CIRCLE, position="right", colour=other)
    assert judge(together(left, right)) == Verdict(None, None, None, "white")


def test_two_objects_that_touch_have_no_shape():
    assert judge(together(replace(RED_CIRCLE, position="left"), RED_CIRCLE)).shape is None


def test_an_object_of_two_colours_has_no_colour():
    pixels = np.array(draw(RED_CIRCLE, 32))
    pixels[:16] = np.asarray(draw(replace(RED_CIRCLE, colour="orange"), 32))[:16]
    assert judge(Image.fromarray(pixels)).colour is None


def test_an_object_around_the_backgrounds_brightness_is_no_colour_and_no_fault():
    chequered = np.where(np.indices((8, 8)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    pixels = np.full((32, 32, 3), 128, dtype=np.uint8)
    pixels[12:20, 12:20] = chequered[..., None]
    assert judge(Image.fromarray(pixels)).colour is None


def test_a_colour_outside_the_palette_has_no_name():
    white_on_black = np.asarray(draw(replace(RED_CIRCLE, background="black"), 32)).max(axis=2, keepdims=True)
    verdict = judge(Image.fromarray(white_on_black.repeat(3, axis=2)))
    assert (verdict.colour, verdict.shape, verdict.position) == (None, "circle", "centre")


@pytest.mark.parametrize(("shape", "degrees"), [("triangle", 180), ("cross", 45), ("square", 45)])
def test_a_turned_shape_is_not_the_shape_nor_another(shape, degrees):
    upright = draw(replace(RED_CIRCLE, shape=shape), 256)
    turned = upright.rotate(degrees, Image.Resampling.BICUBIC, fillcolor=BACKGROUNDS["white"])
    assert judge(turned).shape is None


def test_half_a_shape_or_two_halves_are_no_shape():
    circle, square = (np.array(draw(replace(RED_CIRCLE, shape=shape), 32)) for shape in ("circle", "square"))
    halves, half = circle.copy(), circle.copy()
    halves[:, :16] = square[:, :16]
    half[:16] = BACKGROUNDS["white"]
    assert judge(Image.fromarray(halves)).shape is None
    assert judge(Image.fromarray(half)).shape is None


def test_random_blobs_hardly_ever_have_a_shape():
    rng, named = np.random.default_rng(0), 0
    y, x = np.mgrid[:32, :32] - 15.5
    for _ in range(200):
        rough = np.asarray(Image.fromarray(rng.normal(0, 1, (9, 9)).astype(np.float32)).resize((32, 32)))
        inside = np.clip(1.5 * (rough + 1.5 - (x**2 + y**2) / 25) + 0.5, 0, 1)[..., None]
        named += judge(picture(inside * COLOURS["red"] + (1 - inside) * 250)).shape is not None
    assert named <= 10


def test_score_refuses_lists_of_different_length():
    with pytest.raises(ValueError, match="1 images for 2 scenes"):
        score([draw(RED_CIRCLE, 32)], [RED_CIRCLE, RED_CIRCLE])

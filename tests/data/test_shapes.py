import json
import subprocess
import sys
from collections import Counter
from io import BytesIO
from itertools import islice

import numpy as np
import pytest
from PIL import Image

from sdscratch.data.shapes import (
    BACKGROUNDS,
    COLOURS,
    DIAMETERS,
    HELD_OUT,
    PLACES,
    POSITIONS,
    SHAPES,
    SHIFT,
    Scene,
    captions,
    draw,
    prompts,
    samples,
    scene_at,
    write_shapes,
)
from sdscratch.errors import DataError
from sdscratch.files import LOCK

EVERY_SCENE = [Scene(c, s, p, b) for c in COLOURS for s in SHAPES for p in POSITIONS for b in BACKGROUNDS]


def pairs(split, count=2000):
    return Counter((scene.colour, scene.shape) for scene in (scene_at(0, split, i) for i in range(count)))


def test_a_scene_depends_on_seed_split_and_number_alone():
    assert scene_at(3, "train", 7) == scene_at(3, "train", 7)
    assert len({scene_at(3, "train", 7), scene_at(4, "train", 7), scene_at(3, "train", 8), scene_at(3, "val", 7)}) == 4


def test_training_and_validation_never_see_a_held_out_pair_and_unseen_sees_nothing_else():
    assert not HELD_OUT & pairs("train").keys()
    assert pairs("train").keys() == pairs("val").keys()
    assert pairs("unseen").keys() == HELD_OUT


def test_colours_and_shapes_are_held_out_about_equally():
    assert Counter(colour for colour, _ in HELD_OUT) == Counter(dict.fromkeys(COLOURS, 1))
    assert set(Counter(shape for _, shape in HELD_OUT).values()) == {1, 2}
    assert {shape for _, shape in HELD_OUT} == set(SHAPES)


def test_training_draws_every_pair_place_and_background_about_equally():
    scenes = [scene_at(0, "train", i) for i in range(4000)]
    drawn = [[(s.colour, s.shape) for s in scenes], [s.position for s in scenes], [s.background for s in scenes]]
    for kinds, counts in zip((32, 5, 4), map(Counter, drawn), strict=True):
        assert len(counts) == kinds
        assert max(counts.values()) < 1.6 * min(counts.values())


def test_every_wording_names_all_four_attributes_in_few_lower_case_words():
    for scene in EVERY_SCENE:
        wordings = captions(scene)
        assert len(set(wordings)) == len(wordings) == 6
        for text in wordings:
            words = text.replace(",", "").replace(":", "").split()
            assert {scene.colour, scene.shape, scene.background, *scene.position.split()} <= set(words)
            assert text == text.lower() and len(words) <= 16
            assert "a orange" not in text


def test_no_two_scenes_share_a_caption():
    texts = [text for scene in EVERY_SCENE for text in captions(scene)]
    assert len(set(texts)) == len(texts) == 6 * 800


def test_palette_colours_keep_their_distance():
    palette = np.array([*COLOURS.values(), *BACKGROUNDS.values()]) / 255
    distances = np.linalg.norm(palette[:, None] - palette[None], axis=2)[~np.eye(len(palette), dtype=bool)]
    assert distances.min() > 0.35


@pytest.mark.parametrize("size", [32, 48, 64])
def test_a_drawing_has_the_object_in_its_place_and_the_background_around_it(size):
    for position in POSITIONS:
        pixels = np.asarray(draw(Scene("red", "square", position, "black"), size))
        column, row = (int(size * place) for place in PLACES[position][:2])
        assert pixels.shape == (size, size, 3)
        assert tuple(pixels[row, column]) == COLOURS["red"]
        assert tuple(pixels[-row, -column]) == (COLOURS["red"] if position == "centre" else BACKGROUNDS["black"])


@pytest.mark.parametrize("shape", SHAPES)
def test_no_object_leaves_the_picture(shape):
    largest = {"shift": (-SHIFT, -SHIFT), "diameter": DIAMETERS[1]}
    moved = np.asarray(draw(Scene("red", shape, "top", "white", **largest), 64), dtype=float)
    middle = np.asarray(draw(Scene("red", shape, "centre", "white", diameter=DIAMETERS[1]), 64), dtype=float)
    mass = np.abs(moved - 250).sum(), np.abs(middle - 250).sum()
    assert mass[0] == pytest.approx(mass[1], rel=2e-3)


def test_a_picture_at_64_px_shows_the_same_as_at_32():
    for i in range(20):
        scene = scene_at(0, "train", i)
        halved = np.asarray(draw(scene, 64).resize((32, 32), Image.Resampling.BOX), dtype=float)
        assert np.abs(halved - np.asarray(draw(scene, 32))).max() < 8


def test_samples_are_the_same_bytes_again_and_describe_their_picture():
    again = dict(samples("val", 3, 32, seed=1))
    for i, (key, sample) in enumerate(samples("val", 3, 32, seed=1)):
        scene, about = scene_at(1, "val", i), json.loads(sample["json"])
        assert again[key] == sample
        assert np.array_equal(Image.open(BytesIO(sample["png"])), draw(scene, 32))
        assert about["captions"] == captions(scene) and sample["txt"].decode() == captions(scene)[0]
        assert [about[name] for name in ("colour", "shape", "position", "background")] == [
            scene.colour,
            scene.shape,
            scene.position,
            scene.background,
        ]
        assert (about["width"], about["height"], about["source"]) == (32, 32, "shapes")
    assert len(again) == 3


def test_more_samples_begin_with_the_fewer():
    assert list(samples("train", 2, 32, seed=0)) == list(islice(samples("train", 5, 32, seed=0), 2))


def test_prompts_are_a_fixed_list_in_every_wording():
    listed = prompts("unseen", 60, seed=0)
    assert listed == prompts("unseen", 60, seed=0) != prompts("unseen", 60, seed=1)
    assert {captions(scene).index(prompt) for prompt, scene in listed} == set(range(6))


def test_an_unknown_split_or_shape_says_what_there_is():
    with pytest.raises(DataError, match="'test'.*train, val, unseen"):
        scene_at(0, "test", 0)
    with pytest.raises(DataError, match="'star'.*circle, square"):
        draw(Scene("red", "star", "centre", "white"), 32)


def test_a_drawing_whose_process_was_killed_before_its_first_mark_is_begun_again(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / LOCK).touch()
    train, val = write_shapes(tmp_path, 3, 1, 16)
    assert (train.total, val.total) == (3, 1)


AT_ONCE = """
import multiprocessing, random, sys, time
from pathlib import Path
from sdscratch.data.shapes import write_shapes

def draw(folder, number, start):
    start.wait()
    time.sleep(random.Random(f"{folder} {number}").uniform(0, 0.03))
    write_shapes(folder, 6, 2, 16)

fork = multiprocessing.get_context("fork")
for round in range(20):
    start = fork.Barrier(4)
    programs = [fork.Process(target=draw, args=(Path(sys.argv[1]) / str(round), i, start)) for i in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join()
    assert [program.exitcode for program in programs] == [0] * 4, round
"""


def test_programs_that_want_the_same_scenes_at_once_all_have_them(tmp_path):
    subprocess.run([sys.executable, "-c", AT_ONCE, tmp_path], check=True, timeout=60)

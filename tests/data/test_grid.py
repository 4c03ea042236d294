"""The captioned grid: whole captions, no overlap."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from sdscratch.data.grid import LINE, MARGIN, MOST_LINES, captioned_grid

CELL = 128
LONG = "in the bottom left corner, a yellow cross on a white background, photographed at dawn"


def square(colour: str, size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def ink(grid: Image.Image, box: tuple[int, int, int, int]) -> int:
    """How many dark pixels there are in a part of the grid."""
    return int((np.asarray(grid.crop(box).convert("L")) < 128).sum())


def test_pictures_stand_row_by_row_enlarged_without_smoothing():
    board = Image.fromarray(np.indices((8, 8)).sum(0).astype(np.uint8) % 2 * 255).convert("RGB")
    grid = captioned_grid([square("red"), board, square("blue")], ["a", "b", "c"], columns=2)
    first = grid.crop((MARGIN, MARGIN, MARGIN + CELL, MARGIN + CELL))
    second = grid.crop((2 * MARGIN + CELL, MARGIN, 2 * (MARGIN + CELL), MARGIN + CELL))
    assert first.getcolors() == [(CELL * CELL, (255, 0, 0))]
    assert {colour for _, colour in second.getcolors()} == {(0, 0, 0), (255, 255, 255)}
    assert grid.width == 2 * (CELL + MARGIN) + MARGIN


def test_a_caption_stands_under_its_picture_in_full_and_nowhere_else():
    short = captioned_grid([square("white")] * 2, ["a", "a"], columns=2)
    grid = captioned_grid([square("white")] * 2, [LONG, "a"], columns=2)
    below, middle = MARGIN + CELL + 1, MARGIN + CELL + MARGIN // 2
    assert grid.height > short.height + 2 * LINE  # the rows grow with the longest caption
    words = [captioned_grid([square("white")], [word], columns=1) for word in LONG.split()]
    expected = sum(ink(word, (0, below, word.width, word.height)) for word in words)
    assert ink(grid, (0, below, middle, grid.height)) == pytest.approx(expected, rel=0.1)
    assert ink(grid, (middle, below, grid.width, grid.height)) == ink(short, (middle, below, short.width, short.height))


@pytest.mark.parametrize("caption", ["x" * 500, "word " * 500])
def test_an_endless_caption_is_broken_and_cut(caption):
    grid = captioned_grid([square("white")], [caption], columns=1)
    assert grid.size == (CELL + 2 * MARGIN, CELL + MOST_LINES * LINE + 3 * MARGIN)
    assert ink(grid, (MARGIN + CELL + 2, 0, grid.width, grid.height)) == 0


def test_letters_of_other_languages_have_their_own_shapes():
    def drawn(letter: str) -> bytes:
        return captioned_grid([square("white")], [letter], columns=1).tobytes()

    assert len({drawn(letter) for letter in "aäéçøßñžłαжя"}) == 12


def test_the_title_has_lines_of_its_own():
    plain = captioned_grid([square("white")], ["a"], columns=4)
    titled = captioned_grid([square("white")], ["a"], columns=4, title=LONG)
    assert titled.width == plain.width and titled.height >= plain.height + 3 * LINE


def test_pictures_of_another_shape_keep_it():
    grid = captioned_grid([Image.new("RGB", (8, 16), "red"), square("blue")], ["", ""], columns=2)
    assert grid.getpixel((MARGIN, MARGIN + 2 * CELL - 1)) == (255, 0, 0)
    assert grid.getpixel((2 * MARGIN + CELL, MARGIN + CELL + 5)) == (255, 255, 255)

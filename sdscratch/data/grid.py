"""Pictures side by side with their captions under them, for people to judge."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from math import ceil
from pathlib import Path
from typing import NamedTuple

import matplotlib
from PIL import Image, ImageDraw, ImageFont

MARGIN, FONT_SIZE, LINE, MOST_LINES = 8, 12, 15, 8


class CaptionedImages(NamedTuple):
    """Pictures, what belongs under each, and how many of them stand side by side."""

    images: list[Image.Image]
    captions: list[str]
    columns: int

    def grid(self) -> Image.Image:
        """All of them as one picture, see captioned_grid."""
        return captioned_grid(self.images, self.captions, self.columns)


def captioned_grid(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, title: str = "", cell: int = 128
) -> Image.Image:
    """One RGB picture: `images` enlarged or reduced to `cell` pixels wide, row by row, each above its caption.

    Small pictures are enlarged without smoothing, so that what one sees is what the model drew. Captions are broken to
    the width of their picture, and cut only after MOST_LINES lines.
    """
    columns = min(columns, len(images))
    scaled = [image.resize((cell, round(cell * image.height / image.width)), _filter(image, cell)) for image in images]
    texts = [_broken(caption, cell) for caption in captions]
    width = columns * (cell + MARGIN) + MARGIN
    heading = _broken(title, width - 2 * MARGIN)
    height = max(image.height for image in scaled) + max(map(len, texts)) * LINE + 2 * MARGIN
    top = MARGIN + len(heading) * LINE + (MARGIN if heading else 0)
    sheet = Image.new("RGB", (width, top + -(-len(scaled) // columns) * height), "white")
    pen = ImageDraw.Draw(sheet)
    _write(pen, (MARGIN, MARGIN), heading)
    for place, (image, text) in enumerate(zip(scaled, texts, strict=True)):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * (cell + MARGIN), top + row * height
        sheet.paste(image.convert("RGB"), (x, y))
        pen.rectangle((x - 1, y - 1, x + cell, y + image.height), outline="lightgrey")
        _write(pen, (x, y + image.height + 2), text)
    return sheet


def labelled_grid(
    rows: Sequence[Sequence[Image.Image]],
    row_labels: Sequence[str],
    column_labels: Sequence[str],
    title: str = "",
    cell: int = 128,
) -> Image.Image:
    """One RGB picture: `rows` of as many images each, `cell` pixels wide, with labels at their left and above them.

    Images are scaled as in captioned_grid; labels are broken to the width of one.
    """
    scaled = [
        [image.resize((cell, round(cell * image.height / image.width)), _filter(image, cell)) for image in row]
        for row in rows
    ]
    at_left, above = ([_broken(label, cell) for label in labels] for labels in (row_labels, column_labels))
    left = MARGIN + max(ceil(_font().getlength(line)) for label in [[""], *at_left] for line in label) + MARGIN
    width = left + len(above) * (cell + MARGIN)
    heading = _broken(title, width - 2 * MARGIN)
    top = MARGIN + len(heading) * LINE + (MARGIN if heading else 0)
    heights = [
        max(len(label) * LINE, *(image.height for image in row)) for label, row in zip(at_left, scaled, strict=True)
    ]
    below = top + max(map(len, above)) * LINE + MARGIN
    sheet = Image.new("RGB", (width, below + sum(heights) + MARGIN * len(heights)), "white")
    pen = ImageDraw.Draw(sheet)
    _write(pen, (MARGIN, MARGIN), heading)
    for column, label in enumerate(above):
        _write(pen, (left + column * (cell + MARGIN), top), label)
    y = below
    for label, row, height in zip(at_left, scaled, heights, strict=True):
        _write(pen, (MARGIN, y), label)
        for column, image in enumerate(row):
            sheet.paste(image.convert("RGB"), (left + column * (cell + MARGIN), y))
        y += height + MARGIN
    return sheet


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Matplotlib's own, because Pillow's knows no accents, no Greek and no Cyrillic."""
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", FONT_SIZE)


def _filter(image: Image.Image, cell: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if cell > image.width else Image.Resampling.LANCZOS


def _broken(text: str, width: int) -> list[str]:
    """Lines of at most `width` pixels, broken between words, or within one that is longer than a line."""
    lines: list[str] = []
    for word in text.split():
        if lines and _font().getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
            continue
        while len(lines) < MOST_LINES and _font().getlength(word[:width]) > width:  # no letter is narrower than a pixel
            lengths = range(1, min(len(word), width))
            fits = max(1, bisect_right(lengths, width, key=lambda n: ceil(_font().getlength(word[:n]))))
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
        if len(lines) > MOST_LINES:
            break
    return lines if len(lines) <= MOST_LINES else [*lines[: MOST_LINES - 1], "..."]


def _write(pen: ImageDraw.ImageDraw, place: tuple[int, int], lines: Sequence[str]) -> None:
    x, y = place
    for number, line in enumerate(lines):
        pen.text((x, y + number * LINE), line, fill="black", font=_font())

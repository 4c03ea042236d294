"""Pictures side by side with their captions under them, for people to judge."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

MARGIN, FONT_SIZE, LINES = 6, 12, 3


def captioned_grid(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, title: str = "", cell: int = 128
) -> Image.Image:
    """One RGB picture: `images` enlarged or reduced to `cell` pixels wide, row by row, each above its caption.

    Small pictures are enlarged without smoothing, so that what one sees is what the model drew.
    """
    font = ImageFont.load_default(FONT_SIZE)
    line = FONT_SIZE + 3
    scaled = [image.resize((cell, round(cell * image.height / image.width)), _filter(image, cell)) for image in images]
    height = max(image.height for image in scaled) + LINES * line + MARGIN
    top = 2 * line if title else MARGIN
    rows = -(-len(scaled) // columns)
    sheet = Image.new("RGB", (columns * (cell + MARGIN) + MARGIN, top + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, line // 3), title, fill="black", font=font)
    letters = max(8, int(cell / (FONT_SIZE * 0.52)))
    for place, (image, caption) in enumerate(zip(scaled, captions, strict=True)):
        row, column = divmod(place, columns)
        x, y = MARGIN + column * (cell + MARGIN), top + row * height
        sheet.paste(image.convert("RGB"), (x, y))
        wrapped = textwrap.wrap(caption, letters, max_lines=LINES, placeholder=" ...")
        pen.multiline_text((x, y + image.height + 2), "\n".join(wrapped), fill="black", font=font, spacing=2)
    return sheet


def _filter(image: Image.Image, cell: int) -> Image.Resampling:
    return Image.Resampling.NEAREST if cell > image.width else Image.Resampling.LANCZOS

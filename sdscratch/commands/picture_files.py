"""Pictures as PNG files that say how they came about, under names that any system takes."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from PIL import Image

from sdscratch import __version__
from sdscratch.data.images import png
from sdscratch.errors import CannotWriteError
from sdscratch.files import unless_taken, write_atomically

LONGEST_NAME = 120  # bytes of the prompt in a file's name; file systems allow 255 in all


class PictureFolder:
    """A folder for pictures, made, and found out now rather than after the last step to take files.

    Raises CannotWriteError where it does not.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise CannotWriteError(f"cannot write into {path}: {error.strerror}. Choose another out=") from error

    def write(self, name: str, image: Image.Image, about: Mapping[str, Any]) -> Path:
        """Write NAME.png, or NAME_2.png where another picture has that name; what is there already is left alone.

        about: all that it takes to draw it again, for the file's text.
        """
        content = png(image, {**about, "Software": f"sdscratch {__version__}"})
        for number in count(1):
            path = self.path / (f"{name}.png" if number == 1 else f"{name}_{number}.png")
            if not path.exists():
                write_atomically(path, lambda file: file.write(content), rename=unless_taken)
            if path.is_file() and path.read_bytes() == content:
                break
        return path


def safe_name(prompt: str) -> str:
    """The prompt as a part of a file's name, on any system."""
    words = re.sub(r"\W+", "_", prompt.lower()).encode()[:LONGEST_NAME].decode(errors="ignore")
    return words.strip("_") or "picture"

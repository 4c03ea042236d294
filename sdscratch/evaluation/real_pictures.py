"""Real pictures with a caption each, from a folder of image shards: what drawn ones are measured against."""

from __future__ import annotations

from functools import cached_property
from hashlib import sha256
from pathlib import Path

from PIL import Image

from sdscratch.data.captions import captions_of, choose, record_of
from sdscratch.data.images import fit, image_member, open_image
from sdscratch.data.index import ShardIndex
from sdscratch.errors import DataError
from sdscratch.randomness import permutation, uniform

CHOICE = 0  # the seed of which pictures, and which of their captions: the same in every evaluation


class RealPictures:
    """`count` pictures of a folder of image shards, or all if there are fewer; always the same ones, in the same order.

    size: pixels that they are scaled and cropped to; None leaves them as they are. Raises DataError where the folder holds
    none, and, naming it, for a picture that cannot be read or has no caption.
    """

    def __init__(self, path: str | Path, count: int, size: int | None = None) -> None:
        self.path, self.size = str(path), size
        self.index = ShardIndex.open(path)
        if self.index.kind != "images":
            raise DataError(f"{path} holds latents: expected a folder of image shards, or a selection of some")
        self.rows = permutation(CHOICE, "evaluation", 0, len(self.index))[:count]
        content = f"{self.index.fingerprint} {len(self.rows)} {size}"
        self.fingerprint = sha256(content.encode()).hexdigest()[:16]

    def __len__(self) -> int:
        return len(self.rows)

    def picture(self, i: int) -> Image.Image:
        """Number i, upright, RGB."""
        row = int(self.rows[i])
        try:
            image = open_image(image_member(self.index.read(row)), at_least=self.size)
        except DataError as error:
            raise DataError(f"{self.index.where(row)}: {error}") from error
        return image if self.size is None else fit(image, self.size)

    @cached_property
    def captions(self) -> list[str]:
        """One of each picture."""
        return [self._caption(int(row)) for row in self.rows]

    def _caption(self, row: int) -> str:
        members = self.index.read(row, only=("json", "txt"))
        if not (found := captions_of(members, record_of(members))):
            raise DataError(
                f"{self.index.where(row)} has no caption. Leave such samples out with `sdscratch data select`"
            )
        return found[choose(found, uniform(CHOICE, "evaluation caption", row))]

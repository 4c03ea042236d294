"""Pictures that a model draws for a list of prompts, kept as files, so that a stopped evaluation goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

from PIL import Image

from sdscratch.data.images import open_image
from sdscratch.errors import ConfigError, DataError
from sdscratch.evaluation.prompt_suites import Prompt
from sdscratch.files import FolderLock, read_json, remove_halves, write_atomically, write_json
from sdscratch.pipeline import TextToImage
from sdscratch.sampling_settings import SamplingSettings

PROTOCOL = "protocol.json"
SETTINGS = {"negative_prompt", "weights", "size", *(setting.name for setting in fields(SamplingSettings))}
"""What of a protocol goes to TextToImage."""


class DrawnPictures:
    """FOLDER/00000.png, ...: one for each prompt, number i from seed + i.

    protocol: all that determines the pictures, as plain JSON; kept beside them. Raises ConfigError where the folder holds
    pictures of another one.
    """

    def __init__(self, folder: Path, prompts: Sequence[Prompt], protocol: Mapping[str, Any]) -> None:
        self.folder, self.prompts = folder, prompts
        self.protocol = json.loads(json.dumps(protocol))  # as it is read again
        self.fingerprint = sha256(json.dumps(self.protocol, sort_keys=True).encode()).hexdigest()[:16]
        with FolderLock(folder, "choose another out=").held(wait=True):  # others may begin at the same time
            self._claim()

    def _claim(self) -> None:
        if before := read_json(self.folder / PROTOCOL):
            names = sorted({**before, **self.protocol})
            if other := [name for name in names if before.get(name) != self.protocol.get(name)]:
                found = ", ".join(f"{name}: {before.get(name)}, not {self.protocol.get(name)}" for name in other)
                raise ConfigError(
                    f"{self.folder} holds pictures drawn otherwise ({found}). Choose another out=, or delete it"
                )
        write_json(self.folder / PROTOCOL, self.protocol)

    def __len__(self) -> int:
        return len(self.prompts)

    def picture(self, i: int) -> Image.Image:
        """Number i, as it lies in the folder."""
        file = self.folder / f"{i:05d}.png"
        try:
            return open_image(file.read_bytes())
        except (OSError, DataError) as error:
            raise DataError(f"{file} cannot be read ({error}). Delete it: the same command draws it again") from error

    def draw(
        self,
        pipe: TextToImage,
        part: tuple[int, int] = (0, 1),
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Draw what is missing, whole batches at a time, so that a picture has the same bits whenever it is drawn.

        part: (which, of how many), to share the batches between processes.
        """
        which, parts = part
        batch_size = self.protocol["batch_size"]  # on other shapes networks round otherwise
        if parts == 1:  # else others may be at it, on machines of whose processes nothing is known here
            remove_halves(self.folder)
        starts = range(which * batch_size, len(self.prompts), parts * batch_size)
        for number, first in enumerate(starts):
            numbers = range(first, min(first + batch_size, len(self.prompts)))
            if not all((self.folder / f"{i:05d}.png").is_file() for i in numbers):
                self._draw(pipe, numbers)
            progress(number + 1, len(starts))

    def _draw(self, pipe: TextToImage, numbers: range) -> None:
        settings = {name: value for name, value in self.protocol.items() if name in SETTINGS}
        texts = [self.prompts[i].text for i in numbers]
        images = pipe(texts, seed=self.protocol["seed"] + numbers.start, batch_size=len(texts), **settings)
        for i, image in zip(numbers, images, strict=True):
            write_atomically(self.folder / f"{i:05d}.png", partial(image.save, format="PNG"))

"""What a folder of shards holds: sizes, captions, words, sources, latents. Counted shard by shard, shown by page.py."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from sdscratch.data import latents
from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.images import FORMATS, image_member
from sdscratch.data.index import ShardIndex
from sdscratch.errors import DataError
from sdscratch.prepare.engine import Engine, map_shards
from sdscratch.prepare.moments import Moments

SAMPLES = 1000  # to a task
TokenCounter = Callable[[list[str]], list[int]]

_WORD = re.compile(r"[^\W\d_]{3,}")
_COMMON = """
the and with for from are was were has have had his her its their there this that these those they them you
your our one two into onto over under out off near next not but who which while where when what how some other
another being been can will all any each very more most than then also through across behind front between
against
"""
_SAYING_LITTLE = frozenset(_COMMON.split())


@dataclass
class Stats:
    """Counts over samples; two of them add up."""

    samples: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)  # width, height in pixels
    captions: Counter[int] = field(default_factory=Counter)  # how many a sample has
    words: Counter[int] = field(default_factory=Counter)  # in a caption
    tokens: Counter[int] = field(default_factory=Counter)  # in a caption, with start and end; empty without a tokenizer
    concepts: Counter[str] = field(default_factory=Counter)  # samples whose captions have the word
    sources: Counter[str] = field(default_factory=Counter)
    licences: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)  # samples whose picture or latents cannot be read, by reason
    moments: Moments = field(default_factory=Moments)

    def __add__(self, other: Stats) -> Stats:
        return Stats(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def add(self, members: Mapping[str, bytes], count_tokens: TokenCounter | None) -> None:
        """Take in one sample."""
        record = record_of(members)
        captions = captions_of(members, record)
        self.samples += 1
        self.captions[len(captions)] += 1
        self.words.update(len(caption.split()) for caption in captions)
        if count_tokens is not None and captions:
            self.tokens.update(count_tokens(captions))
        self.concepts.update({word for caption in captions for word in _WORD.findall(caption.lower())} - _SAYING_LITTLE)
        self.sources[str(record.get("source", "unknown"))] += 1
        self.licences[str(record.get("licence", "unknown"))] += 1
        try:
            if "latent.npy" in members:
                self.moments.add(latents.unpack(members["latent.npy"]))
            self.sizes[_size(members, record)] += 1
        except DataError as error:
            self.bad[str(error)] += 1

    def truncated(self, length: int) -> float:
        """The share of captions that do not fit into `length` tokens, start and end among them."""
        return sum(times for tokens, times in self.tokens.items() if tokens > length) / max(1, self.tokens.total())


def collect(
    path: Path,
    count_tokens: TokenCounter | None = None,
    engine: Engine = "local",
    workers: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Stats:
    """Look at every sample of a folder. count_tokens: captions -> tokens in each, start and end among them."""
    count = len(ShardIndex.open(path))
    tasks, total = [range(first, min(first + SAMPLES, count)) for first in range(0, count, SAMPLES)], Stats()
    for found in map_shards(partial(_collect, path, count_tokens), tasks, engine, workers):
        total += found
        progress(total.samples, count)
    return total


def _collect(path: Path, count_tokens: TokenCounter | None, numbers: range) -> Stats:
    index, stats = ShardIndex.open(path), Stats()
    for n in numbers:
        stats.add(index.read(n), count_tokens)
    return stats


def _size(members: Mapping[str, bytes], record: Mapping[str, Any]) -> tuple[int, int]:
    """Of the picture by its header, without decoding it; of latents as their record says."""
    if "latent.npy" in members:
        size = record.get("width"), record.get("height")
        return size if isinstance(size[0], int) and isinstance(size[1], int) else (0, 0)  # type: ignore[return-value]
    try:
        with Image.open(io.BytesIO(image_member(members)), formats=FORMATS) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError("the picture cannot be read") from error

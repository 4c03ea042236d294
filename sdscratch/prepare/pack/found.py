"""What a collection is to whoever packs it: parts, each of which finds its pictures in a fixed sequence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from sdscratch.data.shards import KEY, Dropped
from sdscratch.errors import DataError, check_whole
from sdscratch.prepare.crops import Box
from sdscratch.randomness import key

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
MAX_BYTES = 256 * 1024**2  # of a picture; beyond any of MAX_PIXELS


class Found(NamedTuple):
    """A picture in a collection. where: for messages. record: its captions, and what else is known of it.

    read: its bytes, to be called before the next picture is asked for. box: what to cut out, if not everything.
    """

    key: str
    where: str
    read: Callable[[], bytes]
    record: dict[str, Any]
    box: Box | None = None


class Part(Protocol):
    """A stretch of a collection that one process reads from its beginning. It travels to that process.

    name: of its shards. is_shard: whether it is one shard; else it is cut into as many as it fills, whatever there is.
    """

    name: str
    is_shard: bool

    def found(self) -> Iterator[Found | Dropped]: ...


class Collection(Protocol):
    """margin: around boxes, as in `square_around`."""

    margin: float

    def identity(self) -> dict[str, Any]:
        """What determines what is found, as plain JSON: settings and files."""

    def parts(self, shard_size: int) -> Sequence[Part]: ...


@dataclass(frozen=True)
class Slice:
    """So many pictures of a list, which make a shard."""

    name: str
    items: Sequence[Any]
    find: Callable[[Sequence[Any]], Iterator[Found | Dropped]]
    is_shard: bool = True

    def found(self) -> Iterator[Found | Dropped]:
        return self.find(self.items)


def slices(
    items: Sequence[Any], shard_size: int, find: Callable[[Sequence[Any]], Iterator[Found | Dropped]]
) -> list[Slice]:
    """The list in stretches of `shard_size`, named 00000, 00001, ..."""
    firsts = range(0, len(items), shard_size)
    return [Slice(f"{n:05d}", items[first : first + shard_size], find) for n, first in enumerate(firsts)]


def drawn(names: Sequence[str], count: int | None, seed: int, purpose: str) -> list[str]:
    """So many of the names, sorted; None for all. Whether one is drawn before another depends on the two alone."""
    if count is None:
        return sorted(names)
    check_whole("limit", count)
    return sorted(sorted(names, key=lambda name: key(seed, f"{purpose}/{name}", 0))[:count])


def key_of(name: str) -> str:
    """A key from a picture's path in its collection: the path without suffix, or its hash where no key may be that."""
    stem = name.rpartition(".")[0]
    return stem if KEY.fullmatch(stem) and ".." not in stem else hash_key(name)


def hash_key(name: str) -> str:
    """20 hex digits."""
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:20]


def is_picture(name: str) -> bool:
    """Whether it is named like one, and not hidden."""
    base = name.rpartition("/")[2]
    return base.lower().endswith(SUFFIXES) and not base.startswith(".") and "__MACOSX/" not in name


def known(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields without those that say nothing: None, empty text and NaN."""
    return {name: value for name, value in fields.items() if value not in (None, "") and value == value}


def read_file(path: Path) -> bytes:
    """Raises DataError for what cannot be read, or is larger than any picture."""
    try:
        size = os.stat(path).st_size
        if not path.is_file():  # to open a pipe would be to wait for ever
            raise DataError(f"{path} is no file")
        if size > MAX_BYTES:
            raise DataError(f"{path} has {size} bytes, allowed are {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def require_folder(path: Path, what: str) -> Path:
    """Raise DataError unless there is such a folder. what: what it must be."""
    if not path.is_dir():
        raise DataError(f"there is no folder {path}: expected {what}.")
    return path


def require_file(path: Path, what: str) -> Path:
    """Raise DataError unless there is such a file. what: what it must be."""
    if not path.is_file():
        raise DataError(f"there is no file {path}: expected {what}.")
    return path


def fingerprint_of_files(folder: Path, names: Sequence[str]) -> str:
    """Changes with any name or size. Contents are not read: that would take as long as packing them."""
    digest = hashlib.sha256()
    for name in names:
        try:
            size = (folder / name).stat().st_size
        except OSError as error:
            raise DataError(
                f"{folder / name} cannot be read: {error.strerror or error}. Is it a link to nowhere?"
            ) from error
        digest.update(f"{name} {size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]

"""Random access to the samples of a folder of shards: sample number -> bytes, by one `pread` per member.

The byte offsets are read from the tar headers once and kept in `index-HASH.npy` beside the shards (in a cache folder
where those are not ours to write beside), the hash being that of the folder's content, so that no stale one is used.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sdscratch.data import tar
from sdscratch.data.manifest import Kind, Manifest
from sdscratch.data.selection import Selection
from sdscratch.data.shards import SUFFIXES, UNFINISHED
from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.files import check_file, write_atomically
from sdscratch.randomness import uniform

Places = dict[str, tuple[int, int]]  # suffix -> offset and size in bytes of that member

_MEND = "Restore that shard, or delete the folder and write it again."


class OpenFiles:
    """Descriptors of the files read last, of this process alone: after a fork or a spawn it starts with none."""

    def __init__(self, limit: int = 32):
        self.limit = limit
        self._forget()

    def read(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of a file from `offset`; fewer where the file ends."""
        if self._process != os.getpid():
            self._forget()
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if len(self._open) > self.limit:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(path)
        return os.pread(descriptor, size, offset)

    def _forget(self) -> None:
        self._process, self._open = os.getpid(), OrderedDict[str, int]()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __del__(self) -> None:
        if self._process == os.getpid():
            for descriptor in self._open.values():
                os.close(descriptor)


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The samples of a folder of shards, or of a part of it (`split`); numbered 0 .. len - 1, shard after shard.

    entries: structured array, one row per sample of the folder: `key`, `shard`, and for each suffix that occurs
        `SUFFIX offset` and `SUFFIX size` in bytes, both 0 where the sample has no such member. Mapped, not read.
    suffixes: those that occur, in the sequence of the fields.
    rows: which of the entries belong to this part, rising; None for all.
    made_by: of the manifest; {} for adopted tars without one.
    fingerprint: changes whenever the content of the folder, or the part, changes.
    """

    folder: Path
    shards: tuple[str, ...]
    kind: Kind
    made_by: dict[str, Any]
    fingerprint: str
    entries: np.ndarray
    suffixes: tuple[str, ...]
    rows: np.ndarray | None
    files: OpenFiles

    @classmethod
    def open(cls, folder: Path | str, cache: Path | str | None = None) -> ShardIndex:
        """Compare the folder with its manifest, then load its byte offsets, or read them from the tar headers.

        A folder that holds a selection opens as that part of the shards that it names.
        cache: where offsets are kept for a read-only folder; default $SDSCRATCH_CACHE, else ~/.cache/sdscratch.
        Raises DataError naming the shard that is missing, extra, short, damaged or of another count than the manifest,
        or the selection whose shards are no longer those that it was made from.
        """
        folder = Path(folder)
        if (selection := Selection.read(folder)) is not None:
            whole = cls.open(selection.source_of(folder), cache)
            selection.require(folder, whole.fingerprint, len(whole))
            return whole.part(selection.rows, f"{whole.fingerprint} {selection.fingerprint}")
        unfinished = (folder / UNFINISHED).exists()  # before the manifest, which another process may be about to write
        manifest = Manifest.read(folder)
        if manifest is None and unfinished:
            raise DataError(f"{folder} was never finished. Run the command that writes it again.")
        shards = sorted(path.name for path in folder.glob("*.tar"))
        sizes = [_size(folder / name) for name in shards]
        _compare(folder, manifest, shards, sizes)

        content = [f"{name} {size}" for name, size in zip(shards, sizes, strict=True)]
        content += [shard.sha256 for shard in manifest.shards] if manifest else []
        fingerprint = _hash(content)
        if manifest is None:  # nothing but the clock tells whether an adopted tar was changed in place
            content += [f"{folder.resolve()}"] + [str((folder / name).stat().st_mtime_ns) for name in shards]
        entries = _load_or_scan(folder, shards, f"index-{_hash(content)}.npy", cache)
        if manifest is not None:
            counts = dict(zip(shards, np.bincount(entries["shard"], minlength=len(shards)), strict=True))
            for shard in manifest.shards:
                if (found := counts[shard.name]) != shard.samples:
                    raise DataError(
                        f"{folder / shard.name} holds {found} samples, its manifest says {shard.samples}. {_MEND}"
                    )
        suffixes = tuple(name.partition(" ")[0] for name in (entries.dtype.names or ())[2::2])
        kind: Kind = manifest.kind if manifest else "latents" if "latent.npy" in suffixes else "images"
        made_by = manifest.made_by if manifest else {}
        return cls(folder, tuple(shards), kind, made_by, fingerprint, entries, suffixes, None, OpenFiles())

    def __len__(self) -> int:
        return len(self.entries) if self.rows is None else len(self.rows)

    @property
    def shard_sizes(self) -> np.ndarray:
        """Samples of this part per shard, int64; what an Order is made from."""
        shards = self.entries["shard"] if self.rows is None else self.entries["shard"][self.rows]
        return np.bincount(shards, minlength=len(self.shards))

    def key(self, n: int) -> str:
        """The key of sample n: its members' common name."""
        return self._entry(n)["key"].decode()

    def shard(self, n: int) -> str:
        """The file name of the shard that sample n lies in."""
        return self.shards[self._entry(n)["shard"]]

    def where(self, n: int) -> str:
        """Shard and key of sample n, for messages."""
        return f"{self.folder / self.shard(n)}: {self.key(n)}"

    def read(self, n: int, only: Container[str] | None = None) -> dict[str, bytes]:
        """The members of sample n by suffix. Raises DataError when the shard has become shorter, or cannot be read.

        only: suffixes to read, where not all are of use.
        """
        _, shard, *places = self._entry(n).item()
        path, members = f"{self.folder}/{self.shards[shard]}", {}
        for suffix, offset, size in zip(self.suffixes, places[::2], places[1::2], strict=True):
            if not offset or (only is not None and suffix not in only):
                continue
            try:
                members[suffix] = self.files.read(path, offset, size)
            except OSError as error:
                raise DataError(f"{path} cannot be read: {error.strerror}. {_MEND}") from error
            if len(members[suffix]) != size:
                raise DataError(f"{path} ends at byte {offset + len(members[suffix])}, before {offset + size}. {_MEND}")
        return members

    def part(self, rows: np.ndarray, name: str) -> ShardIndex:
        """These of the folder's entries alone. rows: rising int64. name: what no other part of the same content has."""
        return replace(self, rows=rows, fingerprint=_hash([name]))

    def split(self, holdout: float, seed: int = 0) -> tuple[ShardIndex, ShardIndex]:
        """(train, val): every sample belongs to val with probability `holdout`, decided by its key alone.

        Images and the latents encoded from them share their keys, and so are held out together.
        """
        draws = (uniform(seed, f"holdout/{self.key(n)}", 0) for n in range(len(self)))
        held_out = np.fromiter(draws, np.float64, len(self)) < holdout
        if held_out.all() or not held_out.any():
            raise ConfigError(
                f"holdout={holdout} of the {len(self)} samples in {self.folder} leaves none for "
                f"{'training' if held_out.any() else 'validation'}. Set a share between 0 and 1 that leaves both."
            )
        rows = np.arange(len(self)) if self.rows is None else self.rows
        name = f"{self.fingerprint} {holdout} {seed}"
        return self.part(rows[~held_out], f"{name}\ntrain"), self.part(rows[held_out], f"{name}\nval")

    def require_vae(self, fingerprint: str) -> None:
        """Raise DataError unless these are images, or latents made by the VAE of this fingerprint."""
        if self.kind == "latents" and (found := self.made_by.get("vae")) != fingerprint:
            raise DataError(
                f"{self.folder} holds latents from another VAE ({found or 'unnamed'}) than the one configured "
                f"({fingerprint}). Encode the images again with `sdscratch data encode`, or set that VAE."
            )

    def _entry(self, n: int) -> np.void:
        if not 0 <= n < len(self):
            raise IndexError(f"sample {n} of {len(self)}")
        return self.entries[n if self.rows is None else self.rows[n]]


def _size(path: Path) -> int:
    """Of a shard, in bytes. Raises DataError for what only has the name of one."""
    if not path.is_file():
        raise DataError(f"{path} is no file, but a folder, a pipe, or a link that leads nowhere. Move it elsewhere.")
    return path.stat().st_size


def _compare(folder: Path, manifest: Manifest | None, shards: list[str], sizes: list[int]) -> None:
    """Raise DataError unless the folder holds the shards that its manifest names, each of the right size."""
    if manifest is None and not shards:
        raise DataError(
            f"no shards in {folder}: expected *.tar files of WebDataset's kind. `sdscratch data shapes` draws the "
            "embedded data set into data/shapes/train and data/shapes/val."
        )
    present = dict(zip(shards, sizes, strict=True))
    for shard in manifest.shards if manifest else ():
        if (size := present.pop(shard.name, None)) is None:
            raise DataError(f"{folder / shard.name} is missing: the manifest names it. {_MEND}")
        if size != shard.size:
            raise DataError(f"{folder / shard.name} has {size} bytes, its manifest says {shard.size}. {_MEND}")
    if manifest and present:
        raise DataError(f"{folder / next(iter(present))} is not in the folder's manifest. Move it elsewhere.")


def _load_or_scan(folder: Path, shards: list[str], name: str, cache: Path | str | None) -> np.ndarray:
    caches = [place / name for place in _caches(cache)]
    for place in (folder / name, *caches):
        with suppress(OSError, ValueError, EOFError):  # not there, or cut off
            check_file(place)
            entries = np.load(place, mmap_mode="r", allow_pickle=False)
            if (entries.dtype.names or ())[:2] == ("key", "shard"):
                return entries
    entries = _scan(folder, shards)
    ours = folder.stat().st_mode & 0o222  # what nobody may write to, the superuser leaves alone as well
    for place in (folder / name, *caches) if ours else caches:
        with suppress(OSError, CannotWriteError):
            write_atomically(place, lambda file: np.save(file, entries, allow_pickle=False))
            for stale in set(folder.glob("index-*.npy")) - {place} if ours else ():
                stale.unlink(missing_ok=True)
            return np.load(place, mmap_mode="r", allow_pickle=False)
    return entries  # nowhere to keep it: read again the next time


def _caches(cache: Path | str | None) -> list[Path]:
    """The folder for what cannot be kept beside its shards; none for a user without a home, as in some containers."""
    if chosen := cache or os.environ.get("SDSCRATCH_CACHE"):
        return [Path(chosen)]
    try:
        return [Path.home() / ".cache" / "sdscratch"]
    except RuntimeError:
        return []


def _scan(folder: Path, shards: list[str]) -> np.ndarray:
    """The entries of all shards, from their tar headers."""
    parts = [_scan_shard(folder / shard, number) for number, shard in enumerate(shards)]
    present = [suffix for suffix in SUFFIXES if any(part[f"{suffix} offset"].any() for part in parts)]
    longest = max(part.dtype["key"].itemsize for part in parts)
    entries = np.empty(sum(map(len, parts)), _dtype(longest, present))
    start = 0
    for part in parts:
        for field in entries.dtype.names or ():
            entries[field][start : start + len(part)] = part[field]
        start += len(part)
    return entries


def samples_of(path: Path) -> Iterator[tuple[str, Places]]:
    """The samples of a shard: their keys, and where their members lie. Reads headers only.

    A sample is a run of members of one key, as in WebDataset; a suffix starts at the first dot of the file name.
    Raises DataError for a damaged tar, and for a member that comes twice.
    """
    key, places = "", Places()
    for member in tar.members(path):
        folder, _, file = member.name.rpartition("/")
        stem, _, suffix = file.partition(".")
        suffix = suffix.lower()
        if not stem or suffix not in SUFFIXES:
            continue
        found = f"{folder}/{stem}" if folder else stem
        if found != key:
            if places:
                yield key, places
            key, places = found, {}
        if suffix in places:
            raise DataError(f"{path} holds {member.name!r} twice. Write the shard again without one of them.")
        places[suffix] = (member.offset, member.size)
    if places:
        yield key, places


def _scan_shard(path: Path, number: int) -> np.ndarray:
    samples = list(samples_of(path))
    entries = np.zeros(len(samples), _dtype(max((len(key) for key, _ in samples), default=1), SUFFIXES))
    entries["key"], entries["shard"] = [key for key, _ in samples], number
    for suffix in SUFFIXES:
        found = np.array([places.get(suffix, (0, 0)) for _, places in samples], np.int64).reshape(-1, 2)
        entries[f"{suffix} offset"], entries[f"{suffix} size"] = found.T
    return entries


def _dtype(longest_key: int, suffixes: Sequence[str]) -> np.dtype:
    places = [(f"{suffix} {field}", "<i8") for suffix in suffixes for field in ("offset", "size")]
    return np.dtype([("key", f"S{longest_key}"), ("shard", "<i4"), *places])


def _hash(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]

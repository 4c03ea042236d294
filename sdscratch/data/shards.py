"""Writes WebDataset shards and the manifest that says what a folder of them must hold.

A shard is a plain USTAR tar of members `KEY.SUFFIX`, the members of a sample one after the other. The same samples give
the same bytes. Every file appears under its name only when it is complete, and the manifest last of all: a folder with
a manifest is a finished one.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from sdscratch.data.captions import record_of
from sdscratch.data.manifest import MANIFEST, Kind, Manifest, Shard
from sdscratch.errors import DataError, check_whole
from sdscratch.files import LOCK, FolderLock, read_json, remove_halves, sha256_of, write_atomically, write_json

UNFINISHED = "unfinished.json"  # stands in a folder while it is being written
DROPPED = "dropped.jsonl"  # names what was left out, a line each; absent where nothing was
BAD = (
    "bad.jsonl"  # of adopted tars: names the samples in them that are no use, a line each; absent where there are none
)
SUFFIXES = ("jpg", "jpeg", "png", "webp", "txt", "json", "latent.npy", "text.npy")

LARGEST = 1_000_000  # samples of a shard
KEY = re.compile(r"[\w\-](?:[\w\-/ ]{0,78}[\w\- ])?", re.ASCII)
"""What the key of a sample may be. No dot: a suffix starts at the first one."""
KEY_IN_WORDS = "up to 80 letters, digits, '_', '-', '/' and spaces in ASCII, no '/' or space first, no '/' last"

Members = dict[str, bytes]  # suffix -> content
Sample = tuple[str, Members]  # with its key


class Dropped(NamedTuple):
    """A sample that was left out: its key, or what else it is known by; the kind of reason; what was found."""

    key: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Noted:
    """What is noted of a shard until its folder is finished. shard: None where all of its samples were dropped."""

    shard: Shard | None
    kinds: list[Kind]
    sources: dict[str, int]
    licences: dict[str, int]
    dropped: list[Dropped]

    @classmethod
    def of(
        cls, shard: Shard | None, kinds: Iterable[Kind], records: list[dict[str, Any]], fell: list[Dropped]
    ) -> Noted:
        """kinds: "images", "latents". records: of its samples; sources and licences are counted from them."""
        sources, licences = (
            dict(Counter(str(record.get(field, "unknown")) for record in records)) for field in ("source", "licence")
        )
        return cls(shard, sorted(set(kinds)), sources, licences, fell)

    @classmethod
    def read(cls, path: Path) -> Noted | None:
        """None where there is nothing of the kind."""
        fields = read_json(path)
        try:
            fields["shard"] = None if fields["shard"] is None else Shard(**fields["shard"])
            fields["dropped"] = [Dropped(*dropped) for dropped in fields["dropped"]]
            return cls(**fields)
        except (KeyError, TypeError):
            return None


def check_shard_size(size: object) -> None:
    """Raise ConfigError unless a shard may have so many samples: it is in memory until it is whole."""
    check_whole("shard_size", size, most=LARGEST)


def shard_name(number: int) -> str:
    """00000.tar, 00001.tar, ..."""
    return f"{number:05d}.tar"


class ShardFolder:
    """A folder of shards while it is written: shard by shard, in any sequence, by one job of any number of processes.

    What is whole stays: a job that was stopped is begun again by `claim`, and writes what the folder has not yet. The
    process that claims it keeps other jobs out until it has finished; those that only write get a copy without the lock.
    """

    def __init__(self, path: Path | str, made_by: dict[str, Any]) -> None:
        """made_by: what determines the content, as plain JSON."""
        self.path = Path(path)
        self.made_by = json.loads(json.dumps(made_by))  # as it is read again
        self._lock = FolderLock(self.path, "choose another folder")

    def __reduce__(self) -> tuple[type[ShardFolder], tuple[Path, dict[str, Any]]]:
        return ShardFolder, (self.path, self.made_by)

    def claim(self, wait: bool = False) -> Manifest | None:
        """Mark the folder as ours to write; its manifest, where it is finished already.

        wait: until no other process writes it. Raises DataError for a folder that holds, finished or not, what something
        else has made, and for tars of another origin: neither is ever touched. RunFolderError while another process writes it.
        """
        manifest = self._present()
        if manifest is None or (self.path / LOCK).exists():  # somebody may be at it, or was killed at its very end
            self._lock.take(wait)
            manifest = self._present()  # by whoever had the lock until now
        if manifest is not None:
            self._tidy()
            return manifest
        write_json(self.path / UNFINISHED, self.made_by)
        (self.path / MANIFEST).unlink(missing_ok=True)  # of a damaged folder, made by the same: written anew
        remove_halves(self.path)
        return None

    def _present(self) -> Manifest | None:
        """The manifest, where the folder is finished; raises DataError where it is not ours.

        Whoever writes it marks it before the first tar and until it has a manifest: read the other way round, a folder
        that is begun or finished meanwhile is never taken for tars without an origin.
        """
        made_by, marker = self.made_by, self.path / UNFINISHED
        has_tars = any(self.path.glob("*.tar"))
        present = read_json(marker) if marker.exists() else None
        if (manifest := Manifest.read(self.path)) is not None:
            if manifest.made_by == made_by and self._is_complete(manifest):
                return manifest
            present = manifest.made_by
        elif present == {}:
            raise DataError(f"{marker} is damaged: what made {self.path} is unknown. Delete that folder.")
        if present is None and has_tars:
            raise DataError(
                f"{self.path} already holds tar files without a manifest. Choose another folder to write to."
            )
        if present is not None and present != made_by:
            differing = sorted(k for k in present.keys() | made_by.keys() if present.get(k) != made_by.get(k))
            raise DataError(
                f"{self.path} already holds shards made with other settings (they differ in {', '.join(differing)}). "
                "Delete that folder, or write to another one."
            )
        return None

    def has(self, name: str) -> bool:
        """Whether that shard was written already, by this job or by one that was stopped."""
        noted = self.noted(name)
        return noted is not None and (noted.shard is None or self._holds(noted.shard))

    def noted(self, name: str) -> Noted | None:
        """What is noted of that shard; None where it is not, or where the folder is finished."""
        return Noted.read(self._side_car(name))

    def write(self, name: str, samples: Iterable[Sample | Dropped]) -> None:
        """Write one shard, or write it anew, and beside it what `finish` needs to know of it.

        Sources and licences are counted from each sample's `json` member. A shard of which everything was dropped
        makes no tar. Raises DataError for keys and suffixes that a reader would refuse, and for a key that comes twice.
        """
        dropped = list[Dropped]()
        kept = list(_kept(samples, dropped))
        self._side_car(name).unlink(missing_ok=True)  # it must never be that of another tar
        shard = _write_tar(self.path / name, kept) if kept else None
        kinds: Iterator[Kind] = ("latents" if "latent.npy" in members else "images" for _, members in kept)
        self._note(name, Noted.of(shard, kinds, [record_of(members) for _, members in kept], dropped))

    def reopen(self, notes: Iterable[tuple[str, Noted]]) -> None:
        """Make a finished folder one again that has all its shards, but is not finished. Raises as `claim` does.

        notes: of all its shards. Stopped before it has them all, the folder is still a finished one.
        """
        self._lock.take()
        for name, noted in notes:
            self._note(name, noted)
        write_json(self.path / UNFINISHED, self.made_by)
        (self.path / MANIFEST).unlink()

    def finish(self, names: Sequence[str]) -> Manifest:
        """Write the manifest of exactly these shards, all of which must have been written, and dropped.jsonl.

        Raises DataError when they hold no samples at all, or both images and latents.
        """
        parts = [noted for name in names if (noted := self.noted(name)) is not None]
        kinds = sorted({kind for part in parts for kind in part.kinds})
        dropped = [sample for part in parts for sample in part.dropped]
        reasons = Counter(sample.reason for sample in dropped)
        if len(parts) != len(names):
            raise DataError(f"{self.path} was changed while it was written. Call the same command again.")
        if len(kinds) != 1:
            why = f" All were dropped: {dict(reasons)}." if dropped else ""
            raise DataError(
                f"nothing to write to {self.path}: expected images or latents, found {kinds or 'none'}.{why}"
            )
        shards = tuple(part.shard for part in parts if part.shard)
        sources, licences = (
            sum((Counter(counts) for counts in several), Counter())
            for several in ([part.sources for part in parts], [part.licences for part in parts])
        )

        for stale in set(self.path.glob("*.tar")) - {self.path / shard.name for shard in shards}:
            stale.unlink()  # of an earlier, unfinished attempt: `claim` made sure that they are ours
        (self.path / DROPPED).unlink(missing_ok=True)
        if lines := "".join(json.dumps(sample._asdict()) + "\n" for sample in dropped):
            write_atomically(self.path / DROPPED, lambda file: file.write(lines.encode()))
        manifest = Manifest(kinds[0], self.made_by, shards, dict(sources), dict(licences), dict(reasons))
        manifest.write(self.path)
        self._tidy()
        return manifest

    def _tidy(self) -> None:
        """Remove what only an unfinished folder needs, and let others in."""
        for leftover in (*self.path.glob("*.tar.json"), self.path / UNFINISHED):
            leftover.unlink(missing_ok=True)
        self._lock.remove()

    def _side_car(self, name: str) -> Path:
        return self.path / f"{name}.json"

    def _note(self, name: str, noted: Noted) -> None:
        write_json(self._side_car(name), asdict(noted))

    def _holds(self, shard: Shard) -> bool:
        path = self.path / shard.name
        return path.is_file() and path.stat().st_size == shard.size

    def _is_complete(self, manifest: Manifest) -> bool:
        return all(map(self._holds, manifest.shards))


def write_shards(
    folder: Path | str, samples: Iterable[Sample | Dropped], made_by: dict[str, Any], shard_size: int = 1000
) -> Manifest:
    """Write samples one after the other as 00000.tar, 00001.tar, ... with `shard_size` samples each, and the manifest.

    samples: read one shard at a time, and not at all where `folder` holds them already, or does when another process that
        writes it has ended; see ShardFolder, also for what is raised.
    """
    target, names, remaining = ShardFolder(folder, made_by), list[str](), iter(samples)
    if (manifest := target.claim(wait=True)) is not None:
        return manifest
    while chunk := _next(remaining, shard_size):
        names.append(shard_name(len(names)))
        target.write(names[-1], chunk)
    return target.finish(names)


def _next(samples: Iterator[Sample | Dropped], kept: int) -> list[Sample | Dropped]:
    """What comes until so many samples are kept."""
    found = list[Sample | Dropped]()
    while kept and (sample := next(samples, None)) is not None:
        found.append(sample)
        kept -= not isinstance(sample, Dropped)
    return found


def _kept(samples: Iterable[Sample | Dropped], dropped: list[Dropped]) -> Iterator[Sample]:
    for sample in samples:
        if isinstance(sample, Dropped):
            dropped.append(sample)
        else:
            yield sample


def _write_tar(path: Path, samples: list[Sample]) -> Shard:
    keys = [key for key, _ in samples]
    if len(set(keys)) != len(keys):
        raise DataError(f"{path.name} would hold the key {Counter(keys).most_common(1)[0][0]!r} twice.")

    def fill(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                if not KEY.fullmatch(key) or not members.keys() <= set(SUFFIXES):
                    raise DataError(
                        f"cannot write sample {key!r} with members {sorted(members)}: keys are {KEY_IN_WORDS}; "
                        f"members are of {', '.join(SUFFIXES)}."
                    )
                for suffix in sorted(members):
                    member = tarfile.TarInfo(f"{key}.{suffix}")  # defaults: mode 0644, uid, gid and mtime 0
                    member.size = len(members[suffix])
                    tar.addfile(member, io.BytesIO(members[suffix]))

    write_atomically(path, fill)
    return Shard(path.name, path.stat().st_size, sha256_of(path), len(samples))

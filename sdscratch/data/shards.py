"""Writes WebDataset shards and the manifest that says what a folder of them must hold.

A shard is a plain USTAR tar of members `KEY.SUFFIX`, the members of a sample one after the other. The same samples give
the same bytes. Every file appears under its name only when it is complete, and the manifest last of all: a folder with
a manifest is a finished one.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from sdscratch.data.captions import record_of
from sdscratch.errors import DataError
from sdscratch.files import remove_halves, write_atomically, write_json

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"  # stands in a folder while it is being written
SUFFIXES = ("jpg", "jpeg", "png", "webp", "txt", "json", "latent.npy", "text.npy")

Kind = Literal["images", "latents"]
Members = dict[str, bytes]  # suffix -> content

_KEY = re.compile(r"[\w\-][\w\-/ ]{0,79}", re.ASCII)  # no dot: a suffix starts at the first one


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, its size in bytes, the sha256 of its bytes, its number of samples."""

    name: str
    size: int
    sha256: str
    samples: int


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, and what made it (`made_by`: plain JSON; latents name their VAE in it)."""

    kind: Kind
    made_by: dict[str, Any]
    shards: tuple[Shard, ...]
    sources: dict[str, int]
    licences: dict[str, int]

    @property
    def total(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none. Raises DataError when it cannot be understood."""
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}). Delete the folder and write it again.") from error
        try:
            if fields["format"] != FORMAT:
                raise DataError(f"{path} has format {fields['format']!r}, this version reads {FORMAT}. Write it again.")
            shards = tuple(Shard(**shard) for shard in fields["shards"])
            manifest = cls(fields["kind"], fields["made_by"], shards, fields["sources"], fields["licences"])
        except (KeyError, TypeError) as error:
            raise DataError(f"{path} is not a manifest of shards ({error!r}). Write the folder again.") from error
        if (
            manifest.kind not in ("images", "latents")
            or manifest.total != fields["total"]
            or any(Path(shard.name).name != shard.name for shard in shards)
        ):
            raise DataError(f"{path} contradicts itself: its kind, total or shard names are wrong. Write it again.")
        return manifest

    def write(self, folder: Path) -> None:
        fields = {"format": FORMAT, "total": self.total, **asdict(self)}
        write_json(Path(folder) / MANIFEST, fields)


def write_shards(
    folder: Path | str, samples: Iterable[tuple[str, Members]], made_by: dict[str, Any], shard_size: int = 1000
) -> Manifest:
    """Write samples as 00000.tar, 00001.tar, ... with `shard_size` samples each, and the manifest.

    samples: (key, {suffix: bytes}), read one shard at a time; suffixes are those of SUFFIXES. Sources and licences are
        counted from each sample's `json` member.
    made_by: what determines the content, as plain JSON. A finished folder made by the same is returned as it is and
        `samples` is not read; one made by something else is never touched, and neither are tars of another origin.
    Raises DataError for such folders, for keys and suffixes that a reader would refuse, and when there are no samples.
    """
    folder, made_by = Path(folder), json.loads(json.dumps(made_by))
    manifest = Manifest.read(folder)
    if manifest is not None and manifest.made_by == made_by and _complete(folder, manifest):
        return manifest
    _claim(folder, manifest.made_by if manifest is not None else None, made_by)
    remove_halves(folder)

    shards, kinds = list[Shard](), set[Kind]()
    sources, licences = Counter[str](), Counter[str]()
    remaining = iter(samples)
    while chunk := list(islice(remaining, shard_size)):
        shards.append(_write_shard(folder / f"{len(shards):05d}.tar", chunk))
        for _, members in chunk:
            record = record_of(members)
            sources[str(record.get("source", "unknown"))] += 1
            licences[str(record.get("licence", "unknown"))] += 1
            kinds.add("latents" if "latent.npy" in members else "images")
    if len(kinds) != 1:
        raise DataError(f"nothing to write to {folder}: expected images or latents, found {sorted(kinds) or 'none'}.")
    for stale in set(folder.glob("*.tar")) - {folder / shard.name for shard in shards}:
        stale.unlink()  # of an earlier, unfinished attempt: `_claim` made sure that they are ours
    manifest = Manifest(kinds.pop(), made_by, tuple(shards), dict(sources), dict(licences))
    manifest.write(folder)
    (folder / UNFINISHED).unlink(missing_ok=True)  # another process may have written the same
    return manifest


def _complete(folder: Path, manifest: Manifest) -> bool:
    return all((p := folder / s.name).is_file() and p.stat().st_size == s.size for s in manifest.shards)


def _claim(folder: Path, finished: dict[str, Any] | None, made_by: dict[str, Any]) -> None:
    """Mark the folder as ours to write, or raise: it holds, finished or not, what something else made."""
    marker = folder / UNFINISHED
    present = finished
    if present is None and marker.exists():
        present = json.loads(marker.read_text(encoding="utf-8"))
    if present is None and any(folder.glob("*.tar")):
        raise DataError(f"{folder} already holds tar files without a manifest. Choose another folder to write to.")
    if present is not None and present != made_by:
        differing = sorted(k for k in present.keys() | made_by.keys() if present.get(k) != made_by.get(k))
        raise DataError(
            f"{folder} already holds shards made with other settings (they differ in {', '.join(differing)}). "
            "Delete that folder, or write to another one."
        )
    write_json(marker, made_by)
    (folder / MANIFEST).unlink(missing_ok=True)  # damaged, and made by the same: written anew


def _write_shard(path: Path, samples: list[tuple[str, Members]]) -> Shard:
    keys = [key for key, _ in samples]
    if len(set(keys)) != len(keys):
        raise DataError(f"{path.name} would hold the key {Counter(keys).most_common(1)[0][0]!r} twice.")

    def fill(file: IO[bytes]) -> None:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                if not _KEY.fullmatch(key) or not members.keys() <= set(SUFFIXES):
                    raise DataError(
                        f"cannot write sample {key!r} with members {sorted(members)}: keys are up to 80 letters, "
                        f"digits, '_', '-', '/' and spaces, members are of {', '.join(SUFFIXES)}."
                    )
                for suffix in sorted(members):
                    member = tarfile.TarInfo(f"{key}.{suffix}")  # defaults: mode 0644, uid, gid and mtime 0
                    member.size = len(members[suffix])
                    tar.addfile(member, io.BytesIO(members[suffix]))

    write_atomically(path, fill)
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Shard(path.name, path.stat().st_size, digest, len(samples))

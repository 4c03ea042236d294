"""The manifest of a folder of shards: what it must hold, and what made it. A folder with one is a finished one."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdscratch.errors import DataError
from sdscratch.files import read_bytes, write_json

FORMAT = 1
MANIFEST = "manifest.json"

Kind = Literal["images", "latents"]


@dataclass(frozen=True)
class Shard:
    """One tar file: its name, its size in bytes, the sha256 of its bytes, its number of samples."""

    name: str
    size: int
    sha256: str
    samples: int

    def __post_init__(self) -> None:
        """Raises TypeError for values that are none of a shard's."""
        texts, numbers = (self.name, self.sha256), (self.size, self.samples)
        if not (all(type(text) is str for text in texts) and all(type(number) is int for number in numbers)):
            raise TypeError(f"{self} describes no shard")


@dataclass(frozen=True)
class Manifest:
    """What a folder of shards holds, what made it, and what was left out.

    made_by: plain JSON; latents name their VAE in it. sources, licences: samples of each. dropped: by reason, the
    samples that the shards would hold too, had nothing been wrong with them.
    """

    kind: Kind
    made_by: dict[str, Any]
    shards: tuple[Shard, ...]
    sources: dict[str, int]
    licences: dict[str, int]
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.shards)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of a folder; None where there is none. Raises DataError when it cannot be understood."""
        path = Path(folder) / MANIFEST
        try:
            fields = json.loads(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({error}). Delete the folder and write it again.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}. Mend that, or move it away.") from error
        try:
            if fields["format"] != FORMAT:
                raise DataError(f"{path} has format {fields['format']!r}, this version reads {FORMAT}. Write it again.")
            shards = tuple(Shard(**shard) for shard in fields["shards"])
            counts = (fields["sources"], fields["licences"], fields.get("dropped", {}))
            manifest = cls(fields["kind"], fields["made_by"], shards, *counts)
            if not all(isinstance(field, dict) for field in (manifest.made_by, *counts)):
                raise TypeError("made_by, sources, licences and dropped are mappings")
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

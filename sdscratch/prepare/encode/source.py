"""A folder of image shards as it is worked through: shard by shard, in many processes."""

from __future__ import annotations

from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path

from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import Manifest
from sdscratch.errors import DataError
from sdscratch.files import sha256_of


class Source:
    """index: of all samples. samples: the numbers of each shard's samples, by its name."""

    def __init__(self, folder: Path) -> None:
        """Raises DataError where the folder is not what its manifest says, or holds latents."""
        self.index = ShardIndex.open(folder)
        if self.index.kind != "images":
            raise DataError(f"{folder} holds latents already; expected a folder of image shards")
        bounds = pairwise(accumulate(self.index.shard_sizes.tolist(), initial=0))
        self.samples = {name: range(*bound) for name, bound in zip(self.index.shards, bounds, strict=True)}

    @staticmethod
    @lru_cache(maxsize=1)  # a worker opens it once, for all its shards
    def as_it_was(folder: Path, fingerprint: str) -> Source:
        """Raises DataError when the folder is another one than when the job began."""
        source = Source(folder)
        if source.index.fingerprint != fingerprint:
            raise DataError(f"{folder} was changed while it was read. Call the same command again.")
        return source

    def check(self, name: str) -> None:
        """Read a shard whole. Raises DataError when it is not what was once written: most damaged pictures decode."""
        path = self.index.folder / name
        found = sha256_of(path)
        if found != self._sha256.get(name, found):  # adopted tars may have no manifest
            raise DataError(
                f"{path} is damaged: its sha256 is not that of the manifest. Restore it, or write it again."
            )

    @cached_property
    def _sha256(self) -> dict[str, str]:
        manifest = Manifest.read(self.index.folder)
        return {shard.name: shard.sha256 for shard in manifest.shards} if manifest else {}

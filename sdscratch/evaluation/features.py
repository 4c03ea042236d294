"""Features of many pictures, computed once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdscratch.files import check_file, write_atomically


class FeatureNetwork(Protocol):
    """What looks at pictures. kind, path, fingerprint: what it is, for the protocol of every table."""

    kind: str
    path: str
    fingerprint: str

    def to(self, device: torch.device | str) -> FeatureNetwork: ...

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """(B, D) float32 on the CPU."""
        ...

    def class_logits(self, features: Tensor) -> Tensor | None:
        """(B, classes); None for a network without any."""
        ...


class PictureSet(Protocol):
    """Numbered pictures. fingerprint: changes whenever one of them does."""

    fingerprint: str

    def __len__(self) -> int: ...

    def picture(self, i: int) -> Image.Image: ...


def features_of(
    pictures: PictureSet,
    network: FeatureNetwork,
    cache: Path,
    batch_size: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:
    """(N, D) float32; read from the folder `cache` where they have been computed before, else computed and put there."""
    name = sha256(f"{network.fingerprint} {pictures.fingerprint}".encode()).hexdigest()[:16]
    file = cache / f"{network.kind}-{name}.npy"
    with suppress(OSError, ValueError, EOFError):  # not there, or cut off
        check_file(file)
        kept = np.load(file, allow_pickle=False)
        if kept.ndim == 2 and len(kept) == len(pictures):
            return torch.from_numpy(kept)
    parts = []
    for first in range(0, len(pictures), batch_size):
        numbers = range(first, min(first + batch_size, len(pictures)))
        parts.append(network.features([pictures.picture(i) for i in numbers]))
        progress(numbers.stop, len(pictures))
    found = torch.cat(parts)
    write_atomically(file, lambda opened: np.save(opened, found.numpy(), allow_pickle=False))
    return found

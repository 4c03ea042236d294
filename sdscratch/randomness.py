"""Every draw is a pure function of (seed, purpose, position).

`position` counts samples over the whole run: `step * global_batch_size + i`. Nothing here has state, so no draw depends
on worker count, world size, wall clock or a restart: whoever knows the position knows the draw.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def key(seed: int, purpose: str, position: int) -> int:
    """A 64-bit integer, uniform over its range and independent for every distinct (seed, purpose, position)."""
    digest = blake2b(f"{seed}/{purpose}/{position}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniform(seed: int, purpose: str, position: int) -> float:
    """One number in [0, 1), of 53 random bits."""
    return (key(seed, purpose, position) >> 11) * 2.0**-53


def permutation(seed: int, purpose: str, position: int, length: int) -> np.ndarray:
    """A random order of range(length), int64 (length,)."""
    return np.random.Generator(np.random.Philox(key(seed, purpose, position))).permutation(length)


def generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """A fresh CPU generator, so that the same key draws the same tensor whatever device it then moves to."""
    import torch

    return torch.Generator().manual_seed(key(seed, purpose, position))


def noise(seed: int, purpose: str, position: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Standard normal noise, float32, of `shape`."""
    import torch

    return torch.randn(shape, generator=generator(seed, purpose, position))

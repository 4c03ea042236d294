"""Random changes to pictures, made on the device that trains on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sdscratch.randomness import key


class Augment:
    """Each picture's changes are a function of (seed, its position) alone, whatever batch it comes in.

    transforms: applied in this order to pictures (1, 3, H, W) in [0, 1], giving such pictures; Kornia's are of this kind. They
    draw from torch's own generators, which are seeded for each position, and afterwards as they were before.
    """

    def __init__(self, transforms: Sequence[Callable[[Tensor], Tensor]], seed: int) -> None:
        self.transforms, self.seed = transforms, seed

    @torch.no_grad()
    def __call__(self, images: Tensor, positions: Tensor) -> Tensor:
        """images (B, 3, H, W) in [-1, 1], positions (B,) -> changed images, of the same shape, range and device."""
        with torch.random.fork_rng([images.device] if images.is_cuda else []):
            changed = [self._change(*pair) for pair in zip(images.split(1), positions.tolist(), strict=True)]
        return torch.cat(changed) * 2 - 1

    def _change(self, image: Tensor, position: int) -> Tensor:
        torch.manual_seed(key(self.seed, "augment", position))  # of all devices
        image = (image + 1) / 2
        for transform in self.transforms:
            image = transform(image).clamp(0, 1)
        return image

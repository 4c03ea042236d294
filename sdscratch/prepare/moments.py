"""Mean and standard deviation of latents, from what a VAE said about each picture, one sample after the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sdscratch.data.latents import deviation
from sdscratch.errors import DataError


@dataclass
class Moments:
    """Sums over latents of one shape (C, h, w), as they would be drawn from the posteriors; unscaled. They add up."""

    shape: tuple[int, ...] = ()
    samples: int = 0
    total: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (C,): over samples, of each one's mean
    squares: np.ndarray = field(default_factory=lambda: np.zeros(1))  # (C,): the same of the squares

    def add(self, moments: np.ndarray) -> None:
        """Take in one sample: (flips, 2, C, h, w). Raises DataError when it has another shape than those before."""
        mean, logvar = moments[0].astype(np.float64)
        if self.shape not in ((), mean.shape):
            raise DataError(f"its latents are of {mean.shape}, those before of {self.shape}")
        expected_squares = mean**2 + deviation(logvar) ** 2
        self.shape, self.samples = mean.shape, self.samples + 1
        self.total = self.total + mean.mean((1, 2))
        self.squares = self.squares + expected_squares.mean((1, 2))

    @property
    def mean(self) -> np.ndarray:
        """(C,)."""
        return self.total / self.samples

    @property
    def std(self) -> float:
        """Over all elements, about the channels' means: what the scaling factor of a VAE trained here makes 1."""
        return float(np.sqrt((self.squares / self.samples - self.mean**2).mean()))

    def __add__(self, other: Moments) -> Moments:
        shape = self.shape or other.shape
        return Moments(shape, self.samples + other.samples, self.total + other.total, self.squares + other.squares)

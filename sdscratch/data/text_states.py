"""What a text encoder said about a sample's captions, as it lies in a shard: their states, in their sequence, as float16."""

from __future__ import annotations

import numpy as np

from sdscratch.data import npy
from sdscratch.errors import DataError


def unpack(data: bytes, captions: int) -> np.ndarray:
    """All of them: float16 (captions, T, D). Raises DataError when the member is anything else, or holds NaN or infinity."""
    states = npy.read(data, "captions' states")
    if states.dtype != np.float16 or states.ndim != 3 or len(states) != captions or not states.size:
        raise DataError(f"its captions' states are {states.dtype} {states.shape}, expected float16 ({captions}, T, D)")
    if not np.isfinite(states).all():
        raise DataError("its captions' states hold NaN or infinite values")
    return states


def state(data: bytes, chosen: int, captions: int, shape: tuple[int, int]) -> np.ndarray:
    """Of the chosen one of so many captions, out of a `text.npy` member (captions, T, D): float16 (T, D), read-only.

    shape: (T, D). Raises DataError when the member is anything else, or the state holds values that are not finite.
    """
    states, expected = npy.read(data, "captions' states"), (captions, *shape)
    if states.dtype != np.float16 or states.shape != expected:
        raise DataError(f"its captions' states are {states.dtype} {states.shape}, expected float16 {expected}")
    if not np.isfinite(states[chosen]).all():
        raise DataError("its captions' states hold NaN or infinite values")
    return states[chosen]

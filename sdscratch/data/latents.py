"""What a VAE said about an image, as it lies in a shard: the mean and log variance of its latents, raw, as float16."""

from __future__ import annotations

import io

import numpy as np

from sdscratch.data import npy
from sdscratch.errors import DataError


def pack(moments: np.ndarray) -> bytes:
    """(flips, 2, C, h, w) = mean, logvar, for the image and, as second flip, its mirror image -> a float16 .npy.

    Raises DataError when a value is not finite or too large for float16.
    """
    with np.errstate(over="ignore"):
        array = np.asarray(moments, dtype=np.float16)
    _check(array)
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def unpack(data: bytes) -> np.ndarray:
    """The float16 array (flips, 2, C, h, w) of a `latent.npy` member. Raises DataError when it is anything else."""
    array = npy.read(data, "latents")
    _check(array)
    return array


def draw(moments: np.ndarray, flip: int, noise: np.ndarray) -> np.ndarray:
    """Latents mean + exp(logvar / 2) * noise of one flip, unscaled: float32 (C, h, w)."""
    mean, logvar = moments[flip].astype(np.float32)
    return mean + deviation(logvar) * noise


def deviation(logvar: np.ndarray) -> np.ndarray:
    """exp(logvar / 2), within the bounds of diffusers' AutoencoderKL."""
    return np.exp(0.5 * logvar.clip(-30.0, 20.0))


def _check(array: object) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != 5 or array.shape[1] != 2:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"its latents are {found}, expected float16 (flips, 2, C, h, w)")
    if not array.size or not np.isfinite(array).all():
        raise DataError("its latents hold NaN or infinite values, or none")

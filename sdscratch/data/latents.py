"""What a VAE said about an image, as it lies in a shard: the mean and log variance of its latents, raw, as float16."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

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
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, dtype = _header(data[:start])
        array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    except Exception as error:  # the header of a damaged file can ask for anything
        raise DataError(f"its latents cannot be read ({type(error).__name__})") from error
    _check(array)
    return array


def draw(moments: np.ndarray, flip: int, noise: np.ndarray) -> np.ndarray:
    """Latents mean + exp(logvar / 2) * noise of one flip, unscaled: float32 (C, h, w)."""
    mean, logvar = moments[flip].astype(np.float32)
    return mean + deviation(logvar) * noise


def deviation(logvar: np.ndarray) -> np.ndarray:
    """exp(logvar / 2), within the bounds of diffusers' AutoencoderKL."""
    return np.exp(0.5 * logvar.clip(-30.0, 20.0))


@lru_cache(maxsize=16)  # one header serves a whole data set
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not the .npy format that `pack` writes")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("not in C order")
    return shape, dtype


def _check(array: object) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.float16 or array.ndim != 5 or array.shape[1] != 2:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise DataError(f"its latents are {found}, expected float16 (flips, 2, C, h, w)")
    if not array.size or not np.isfinite(array).all():
        raise DataError("its latents hold NaN or infinite values, or none")

"""Arrays of float16 as members of a shard, in .npy format: read in place, without pickle, each header parsed once."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np

from sdscratch.errors import DataError


def read(data: bytes, what: str) -> np.ndarray:
    """The array, not copied: read-only. Raises DataError naming `what` when it is anything else than .npy of numbers."""
    start = 10 + int.from_bytes(data[8:10], "little")
    try:
        shape, dtype = _header(data[:start])
        return np.frombuffer(data, dtype, offset=start).reshape(shape)
    except Exception as error:  # the header of a damaged file can ask for anything
        raise DataError(f"its {what} cannot be read ({type(error).__name__})") from error


@lru_cache(maxsize=16)  # a few headers serve a whole data set
def _header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = io.BytesIO(header)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("not the .npy format that is written here")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if fortran_order:
        raise ValueError("not in C order")
    return shape, dtype

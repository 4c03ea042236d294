"""Where networks run, and in which numbers, by the names that people give them."""

from __future__ import annotations

import torch

from sdscratch.errors import check_choice

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def best_device() -> str:
    """The GPU where there is one: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype_of(name: str) -> torch.dtype:
    """Raises ConfigError for what is none of DTYPES."""
    check_choice("dtype", name, [*DTYPES])
    return DTYPES[name]

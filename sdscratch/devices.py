"""Where networks run, and in which numbers, by the names that people give them; and how values get there."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from sdscratch.errors import ConfigError, check_choice

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def best_device() -> str:
    """The GPU where there is one: cuda, else mps, else cpu."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def device_of(name: object) -> str:
    """The device of that name; None: the best one. Raises ConfigError for what is no name of any."""
    if name is None:
        return best_device()
    if not isinstance(name, str) or not re.fullmatch(r"cpu|mps|cuda(:\d{1,3})?", name):
        raise ConfigError(f"device is {name!r}: expected cuda, cuda:1, mps or cpu")
    return name


def dtype_of(name: str) -> torch.dtype:
    """Raises ConfigError for what is none of DTYPES."""
    check_choice("dtype", name, [*DTYPES])
    return DTYPES[name]


def send(values: Tensor, device: torch.device) -> Tensor:
    """The host's values on a device that may still be at work: through pinned memory, so that the host need not wait."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)

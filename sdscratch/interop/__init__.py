"""Models as other programs write and read them: tables, and functions from files to networks and back.

The public name loads on first use, so that whoever needs another module here does not wait for it.
"""

from typing import Any

__all__ = ["load_released_checkpoint"]


def __getattr__(name: str) -> Any:
    if name == "load_released_checkpoint":
        from sdscratch.interop.released_checkpoint import load_released_checkpoint

        return load_released_checkpoint
    raise AttributeError(f"module 'sdscratch.interop' has no attribute {name!r}")

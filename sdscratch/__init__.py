"""sdscratch: text-to-image diffusion models, trained from random initialisation.

The public names load on first use, so that `import sdscratch` and `sdscratch --help` stay instant.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["TextToImage"]

_HOMES = {"TextToImage": "sdscratch.pipeline"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch' has no attribute {name!r}")

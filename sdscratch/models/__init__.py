"""Networks and encoders: modules that know no noise, no data and no training.

The public names load on first use, so that whoever needs one of them does not wait for the others.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "FrozenEncoders": "sdscratch.models.encoders",
    "ReleasedUNet": "sdscratch.models.released_unet",
    "TextEncoder": "sdscratch.models.encoders",
    "UNet": "sdscratch.models.unet",
    "load_text_encoder": "sdscratch.models.encoders",
    "load_vae": "sdscratch.models.encoders",
    "new_clip": "sdscratch.models.encoders",
    "new_vae": "sdscratch.models.encoders",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch.models' has no attribute {name!r}")

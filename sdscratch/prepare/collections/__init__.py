"""Collections of captioned pictures as they were published, a file for each kind. The names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Coco": "sdscratch.prepare.collections.coco",
    "DiffusionDB": "sdscratch.prepare.collections.diffusiondb",
    "Folder": "sdscratch.prepare.collections.folder",
    "JourneyDB": "sdscratch.prepare.collections.journeydb",
    "Tars": "sdscratch.prepare.adopt",
    "VGGFace2": "sdscratch.prepare.collections.vggface2",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch.prepare.collections' has no attribute {name!r}")

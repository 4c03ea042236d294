"""Collections of captioned pictures -> shards. A file for each kind of collection; their names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Coco": "sdscratch.prepare.pack.coco",
    "DiffusionDB": "sdscratch.prepare.pack.diffusiondb",
    "Folder": "sdscratch.prepare.pack.folder",
    "JourneyDB": "sdscratch.prepare.pack.journeydb",
    "Tars": "sdscratch.prepare.pack.adopt",
    "VGGFace2": "sdscratch.prepare.pack.vggface2",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch.prepare.pack' has no attribute {name!r}")

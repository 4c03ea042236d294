"""From shards on disk to batches: index, order, captions, images, samples, loaders. The names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "BaseDataModule": "sdscratch.data.datamodule",
    "DataModule": "sdscratch.data.datamodule",
    "MixtureDataModule": "sdscratch.data.mixture_datamodule",
    "ShapesDataModule": "sdscratch.data.shapes_datamodule",
    "ImageBatch": "sdscratch.data.batch",
    "ImageCollate": "sdscratch.data.batch",
    "LatentBatch": "sdscratch.data.batch",
    "LatentCollate": "sdscratch.data.batch",
    "Manifest": "sdscratch.data.manifest",
    "Order": "sdscratch.data.order",
    "SequentialOrder": "sdscratch.data.order",
    "ShardDataset": "sdscratch.data.dataset",
    "Dropped": "sdscratch.data.shards",
    "ShardFolder": "sdscratch.data.shards",
    "ShardIndex": "sdscratch.data.index",
    "check_resolution": "sdscratch.data.images",
    "preprocess": "sdscratch.data.images",
    "to_pil": "sdscratch.data.images",
    "write_shards": "sdscratch.data.shards",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch.data' has no attribute {name!r}")

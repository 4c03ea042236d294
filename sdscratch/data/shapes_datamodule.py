"""The embedded data set as shards: drawn where it is wanted and not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdscratch.data import shapes
from sdscratch.data.datamodule import DataModule
from sdscratch.data.shards import Manifest, write_shards


def write_shapes(folder: str | Path, count: int, val_count: int, resolution: int, seed: int = 0) -> list[Manifest]:
    """Draw `train/`, and `val/` of the same colour-shape pairs, into `folder`; what is there already is left alone."""
    return [
        write_shards(
            Path(folder) / split,
            shapes.samples(split, number, resolution, seed),  # type: ignore[arg-type]
            made_by={"by": "shapes", "split": split, "count": number, "resolution": resolution, "seed": seed},
        )
        for split, number in (("train", count), ("val", val_count))
    ]


class ShapesDataModule(DataModule):
    """A DataModule over `count` drawn scenes of `resolution` pixels in `path`, and `val_count` held-out ones.

    drawn_with: seed of the scenes; `seed` is that of their order. Everything else as in DataModule.
    """

    def __init__(
        self,
        path: str,
        count: int,
        val_count: int,
        resolution: int,
        global_batch_size: int,
        seed: int,
        drawn_with: int = 0,
        num_workers: int = 0,
        val_samples: int = 256,
    ) -> None:
        write_shapes(path, count, val_count, resolution, drawn_with)
        train, val = (str(Path(path) / split) for split in ("train", "val"))
        settings: dict[str, Any] = {"num_workers": num_workers, "val_samples": val_samples}
        super().__init__(train, resolution, global_batch_size, seed, val_path=val, **settings)

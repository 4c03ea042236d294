"""The embedded data set as shards: drawn where it is wanted and not there yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdscratch.data.datamodule import DataModule
from sdscratch.data.shapes import write_shapes
from sdscratch.errors import ConfigError


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
        if not path:
            raise ConfigError("dataset.path is empty: expected a folder, `.` for this one")
        train, val = (str(Path(path) / split) for split in ("train", "val"))
        settings: dict[str, Any] = {"num_workers": num_workers, "val_samples": val_samples}
        super().__init__(train, resolution, global_batch_size, seed, val_path=val, **settings)
        write_shapes(path, count, val_count, resolution, drawn_with)

"""`sdscratch data shapes`: draw the embedded data set."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.data.shapes_datamodule import write_shapes
from sdscratch.errors import ConfigError

LEAST = {"count": 1, "val_count": 1, "resolution": 8}  # below 8 pixels no shape is one


def run(cfg: DictConfig) -> None:
    """Write `out/train` and `out/val`; what is there already is left alone."""
    for name, least in LEAST.items():
        if cfg[name] < least:
            raise ConfigError(f"{name} is {cfg[name]}: expected at least {least}")
    train, val = write_shapes(cfg.out, cfg.count, cfg.val_count, cfg.resolution, cfg.seed)
    print(f"{cfg.out}: {train.total} training and {val.total} validation scenes of {cfg.resolution} px")

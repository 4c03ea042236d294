"""`sdscratch data shapes`: draw the embedded data set."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.data.shapes_datamodule import write_shapes


def run(cfg: DictConfig) -> None:
    """Write `out/train` and `out/val`."""
    train, val = write_shapes(cfg.out, cfg.count, cfg.val_count, cfg.resolution, cfg.seed)
    print(f"{cfg.out}: {train.total} training and {val.total} validation scenes of {cfg.resolution} px")

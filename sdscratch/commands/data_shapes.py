"""`sdscratch data shapes`: draw the embedded data set."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_paths import out_folder
from sdscratch.data.shapes import write_shapes
from sdscratch.errors import check_whole

LEAST = {"count": 1, "val_count": 1, "resolution": 8}  # below 8 pixels no shape is one


def run(cfg: DictConfig) -> None:
    """Write `out/train` and `out/val`; what is there already is left alone."""
    out = out_folder(cfg)
    for name, least in LEAST.items():
        check_whole(name, cfg[name], least)
    train, val = write_shapes(out, cfg.count, cfg.val_count, cfg.resolution, cfg.seed)
    print(f"{out}: {train.total} training and {val.total} validation scenes of {cfg.resolution} px")

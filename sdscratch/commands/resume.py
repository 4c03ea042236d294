"""`sdscratch resume RUN`: go on where a run stopped, with the configuration that it was started with."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from sdscratch.commands.train import train
from sdscratch.config import check_config
from sdscratch.errors import RunFolderError
from sdscratch.run_folder import RunFolder


def run(run: str, overrides: list[str]) -> None:
    """Read the run's resolved configuration, apply `key=value` overrides, train on."""
    folder = RunFolder(run)
    if not folder.config_file.is_file():
        raise RunFolderError(f"{run} holds no run: expected a folder with config.yaml, such as runs/NAME")
    cfg = OmegaConf.merge(OmegaConf.load(folder.config_file), OmegaConf.from_dotlist(overrides))
    assert isinstance(cfg, DictConfig)
    cfg.resume_from = "auto"
    check_config(cfg)
    train(cfg)

"""`sdscratch resume RUN`: go on where a run stopped, with the configuration that it was started with."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from sdscratch.commands.train import train
from sdscratch.config import check_config
from sdscratch.errors import ConfigError, RunFolderError
from sdscratch.run_folder import RunFolder


def run(run: str, overrides: list[str]) -> None:
    """Read the run's recipe, its configuration before interpolation, apply `key=value` overrides, train on."""
    folder = RunFolder(run)
    if not folder.recipe_file.is_file():
        raise RunFolderError(f"{run} holds no run: expected a folder with recipe.yaml, such as runs/NAME")
    cfg = OmegaConf.load(folder.recipe_file)
    assert isinstance(cfg, DictConfig)
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or OmegaConf.select(cfg, key, default=KeyError) is KeyError:
            raise ConfigError(f"{override}: expected key=value with a key of {folder.recipe_file}")
        cfg.merge_with_dotlist([override])
    cfg.resume_from = "auto"
    check_config(cfg)
    train(cfg)

"""Whether a run that is finished is what a configuration asks for."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_folders import folders_of
from sdscratch.config import Change, build, learnt_changes, load_config, settings
from sdscratch.errors import ConfigError, DataError
from sdscratch.run_folder import RunFolder
from sdscratch.training.curriculum import trained_on


def relearnt(run: RunFolder, cfg: DictConfig) -> list[Change]:
    """For what it would have to be trained again: settings, or else the data that their paths lead to.

    Data that are there no longer, or are being made, change nothing: a finished run does without.
    """
    if not run.recipe_file.is_file():
        return []
    if found := learnt_changes(settings(load_config(run.recipe_file)), settings(cfg)):
        return found
    before, now = trained_on(run)["fingerprint"], _fingerprint(cfg.dataset)
    return [Change("dataset.fingerprint", before, now)] if before and now and before != now else []


def _fingerprint(dataset: DictConfig) -> str | None:
    if not all(folder.exists() for folder in folders_of(dataset)):
        return None
    try:
        return str(build(dataset).fingerprint)
    except (ConfigError, DataError):
        return None

"""`sdscratch evaluate compare`: several evaluations on one page."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, ListConfig

from sdscratch.commands.data_paths import required
from sdscratch.console import warn
from sdscratch.errors import ConfigError
from sdscratch.evaluation.report import column_names, section, write_report
from sdscratch.evaluation.results import Evaluation


def run(cfg: DictConfig) -> None:
    """Write the page `out`; warn of numbers that only look as if they compared."""
    out = Path(required(cfg, "out", "a file for the page"))
    if not isinstance(cfg.evaluations, ListConfig) or len(cfg.evaluations) < 2:
        raise ConfigError(f"evaluations is {cfg.evaluations}: expected two folders or more, as in evaluations=[a,b]")
    folders = [Path(str(folder)) for folder in cfg.evaluations]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise ConfigError(f"evaluations is {cfg.evaluations}: expected each folder once")
    evaluations = {folder: Evaluation.read(folder) for folder in folders}
    names = column_names(list(evaluations))
    for title in dict.fromkeys(table.title for found in evaluations.values() for table in found.tables):
        if differing := section(title, names, list(evaluations.values())).differing:
            warn(f"{title}: these numbers do not compare, {', '.join(differing)} differ")
    print(write_report(out, " and ".join(names), evaluations))

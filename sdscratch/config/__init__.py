"""The one room, with the commands, that knows Hydra: find conf/, compose it, check it against the code, build from it.

cfg = compose("train", ["experiment=tiny", "optimizer.lr=2.0e-4"])
check_config(cfg)
trainer = build(cfg.trainer, callbacks=list(build_named(cfg.callbacks).values()))
"""

from sdscratch.config import lengths as lengths  # configurations name its resolver
from sdscratch.config.building import build, build_named
from sdscratch.config.changes import ABSENT, Change, changes, check_identity, learnt_changes, settings
from sdscratch.config.checking import check_config, missing_keys
from sdscratch.config.composition import SweepJob, compose, config_dir, config_files, config_groups, literal, sweep
from sdscratch.config.explaining import Group
from sdscratch.config.quoting import quoted
from sdscratch.config.saving import load_config, plain, save_config, to_yaml
from sdscratch.config.targets import find_target
from sdscratch.masking import mask

__all__ = [
    "ABSENT",
    "Change",
    "Group",
    "SweepJob",
    "build",
    "build_named",
    "changes",
    "check_config",
    "check_identity",
    "compose",
    "config_dir",
    "config_files",
    "config_groups",
    "find_target",
    "learnt_changes",
    "literal",
    "load_config",
    "mask",
    "missing_keys",
    "plain",
    "quoted",
    "save_config",
    "settings",
    "sweep",
    "to_yaml",
]

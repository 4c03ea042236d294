"""What may change when a run goes on, and what would make it another run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from omegaconf import DictConfig

from sdscratch.config.saving import plain
from sdscratch.config.words import did_you_mean, join, screen
from sdscratch.errors import ConfigError

IDENTITY = (
    "seed",
    "global_batch_size",
    "stage._target_",
    "model",
    "vae",
    "text_encoder",
    "objective._target_",
    "objective.prediction_type",
    "objective.noise_schedule",
    "optimizer._target_",
    "dataset.fingerprint",
    "dataset.resolution",
    "dataset.seed",
    "dataset.sources",
    "dataset.replay",
    "dataset.window",
)
"""Keys, with all below them, that weights, optimizer state and positions depend on."""

HARMLESS = ("path", "val_path", "gradient_checkpointing")
"""Last parts of keys that are none of these: what a path leads to counts, and memory costs no digit."""

NOT_LEARNT = (
    "callbacks",
    "dataset.cache",
    "dataset.num_workers",
    "length",
    "stage.channels_last",
    "stage.compile",
    "stage.memory_budget",
    "stage.preview_prompts",
    "threads",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.strategy",
)
"""Keys that a finished run may change: what was learnt does not depend on them, or no more than on rounding."""

UNRECORDED = ("name", "paths", "resume", "resume_from", "init", "init_from", "logger")
"""Keys that are about the session, not about what is trained."""

ABSENT = "(not set)"
COPY = re.compile(r"\$\{[\w.]+\}")


class Change(NamedTuple):
    """One key whose value differs; ABSENT stands for none."""

    key: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.key}: {self.old} -> {self.new}"


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Every value of a configuration by its dotted key, plain and without secrets, but for those that only repeat another."""
    return dict(_settings(plain(cfg, resolve=False), plain(cfg), ""))


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two `settings`, in the order of the keys, without what is about the session only."""
    differing = [key for key in sorted(before.keys() | now.keys()) if before.get(key, ABSENT) != now.get(key, ABSENT)]
    return [
        Change(key, before.get(key, ABSENT), now.get(key, ABSENT)) for key in differing if not _under(key, UNRECORDED)
    ]


def learnt_changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Of the `changes`, those for which a finished run would have to be trained again."""
    return [
        change
        for change in changes(before, now)
        if not _under(change.key, NOT_LEARNT) and change.key.rpartition(".")[2] not in HARMLESS
    ]


def check_identity(run: str, changed: Sequence[Change], allowed: Sequence[str]) -> None:
    """Raise ConfigError, with the old and the new values, where a change would make `run` another run.

    allowed: keys, or the beginnings of keys, that may change all the same.
    """
    for name in allowed:
        if not _under(name, IDENTITY) and not any(_under(key, [name]) for key in IDENTITY):
            raise ConfigError(f"resume.allow_change: {name!r} needs no permission{did_you_mean(name, IDENTITY)}")
    refused = [change for change in changed if _protected(change.key) and not _under(change.key, allowed)]
    if refused:
        names = ",".join(dict.fromkeys(_under(change.key, IDENTITY) for change in refused))
        raise ConfigError(
            screen(
                f"{run} would be another run than it was. Set this back, or start a new run (init_from={run} takes its "
                f"weights along), or insist: resume.allow_change=[{names}]",
                map(str, refused),
            )
        )


def _settings(raw: Mapping[str, Any], resolved: Mapping[str, Any], key: str) -> Iterator[tuple[str, Any]]:
    for name, value in resolved.items():
        if isinstance(raw[name], str) and COPY.fullmatch(raw[name]):
            continue
        if isinstance(value, dict) and isinstance(raw[name], dict):
            yield from _settings(raw[name], value, join(key, name))
        else:
            yield join(key, name), value


def _protected(key: str) -> bool:
    return bool(_under(key, IDENTITY)) and key.rpartition(".")[2] not in HARMLESS


def _under(key: str, names: Sequence[str]) -> str:
    """The one of `names` that `key` is or lies below, or nothing."""
    return next((name for name in names if key == name or key.startswith(f"{name}.")), "")

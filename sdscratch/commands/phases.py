"""From the configuration of a curriculum to those of its phases, each as `sdscratch train` would get it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from sdscratch.commands import footprint
from sdscratch.commands.finished import relearnt
from sdscratch.commands.trainer import check_trainer
from sdscratch.config import Change, changes, check_config, compose, literal
from sdscratch.config.words import did_you_mean
from sdscratch.errors import ConfigError, check_choice, check_whole
from sdscratch.randomness import key
from sdscratch.run_folder import RunFolder, folder_below
from sdscratch.training.curriculum import Entry
from sdscratch.training.initial_weights import check_choices

OF_THE_CHAIN = ("phase", "name", "resume_from", "paths", "init.samples_seen")
"""Keys of `sdscratch train` that the curriculum sets itself."""

ENCODERS = {"sdscratch.training.Autoencoder": "vae", "sdscratch.training.Clip": "text_encoder"}
"""Stages that leave something for later ones, and what that is to them."""


@dataclass(frozen=True)
class Phase:
    """cfg: its configuration, checked. before: whose network it takes over. encoders: who left its vae or text_encoder."""

    name: str
    cfg: DictConfig
    before: Phase | None = None
    encoders: Mapping[str, Phase] = field(default_factory=dict)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(folder_below(self.cfg.paths.runs, self.cfg.name))

    def models(self) -> dict[str, str]:
        """What earlier phases left for it: {"vae": model folder, "text_encoder": model folder}, or less."""
        return {part: str(phase.folder.model_folder) for part, phase in self.encoders.items()}

    def changed(self, entry: Entry) -> list[Change]:
        """What is not as it was when the phase was trained; nothing where it has learnt nothing yet.

        entry: what the manifest says of it. Of a phase that is still running only what it took over counts: all else is as
        for any run that goes on.
        """
        if not entry.has_learnt():
            return []
        found = relearnt(self.folder, self.cfg) if entry.status == "done" else []
        before, now = _origin(entry.carried or {}), _origin(self._to_carry())
        return [*found, *changes(before, now)]

    def _to_carry(self) -> dict[str, Any]:
        taken = {"from": str(self.before.folder.path)} if self.before else {}
        if not taken and self.cfg.init_from is not None:
            taken = {"from": str(self.cfg.init_from)}
        how = {name: self.cfg.init[name] for name in ("weights", "optimizer", "ema")} if taken else {}
        return {**taken, **how, **self.models()}


def phases_of(cfg: DictConfig) -> list[Phase]:
    """In their order, composed and checked, nothing built. Raises ConfigError naming the phase that does not fit."""
    folder_below(cfg.paths.curricula, cfg.name)
    check_choice("on_change", cfg.on_change, ("refuse", "rerun"))
    check_choices("handover", cfg.handover)
    phases: list[Phase] = []
    for name in _names(cfg):
        try:
            phases.append(_phase(cfg, name, phases))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error
    for number, phase in enumerate(phases):
        _tell_of_later_steps(phase.cfg, sum(later.cfg.max_steps for later in phases[number + 1 :]))
    return phases


def _names(cfg: DictConfig) -> list[str]:
    names = list(cfg.phases) if isinstance(cfg.phases, ListConfig) else []
    if not names or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"phases={cfg.phases}: expected a list of phases, such as [p1_laion_broad,p2_laion_refined]")
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"phases={names}: {twice[0]} is there twice")
    for name in cfg.overrides or {}:
        if name not in names:
            raise ConfigError(f"overrides.{name}: {name} is none of the phases{did_you_mean(str(name), names)}")
    return names


def _phase(cfg: DictConfig, name: str, earlier: Sequence[Phase]) -> Phase:
    own = _words("train", cfg.train) | _words(f"overrides.{name}", (cfg.overrides or {}).get(name, []))
    if cfg.config_dir is not None:
        own["hydra.searchpath"] = f"hydra.searchpath=[{literal(f'file://{Path(str(cfg.config_dir)).resolve()}')}]"
    part = _compose(name, own)
    stage = part.stage._target_
    encoders = {ENCODERS[kind]: phase for phase in earlier if (kind := phase.cfg.stage._target_) in ENCODERS}
    if "objective" not in part:
        encoders = {}
    if encoders:
        trained = {role: f"{role}=trained" for role in encoders}
        paths = {f"{role}.path": literal(str(phase.folder.model_folder)) for role, phase in encoders.items()}
        part = _compose(name, own | trained | {where: f"{where}={path}" for where, path in paths.items()})
    before = next((phase for phase in reversed(earlier) if phase.cfg.stage._target_ == stage), None)
    if part.init_from is not None:
        before = None
    part.name, part.resume_from = f"{cfg.name}/{name}", "auto"
    part.paths = cfg.paths
    if "seed" not in own:
        part.seed = key(cfg.seed, f"phase/{name}", 0) % 2**31
    if before:
        part.init.samples_seen = "keep"
        for choice, value in cfg.handover.items():
            if f"init.{choice}" not in own:
                part.init[choice] = value
    _join_logs(part, cfg.name)
    check_config(part)
    for length in ("max_steps", "global_batch_size"):
        check_whole(length, part[length])
    check_trainer(part)
    check_choices("init", part.init)
    if not footprint.checkpoints(part):
        raise ConfigError("callbacks.checkpoints is null, but a curriculum goes on from checkpoints: leave it on")
    return Phase(name, part, before, encoders)


def _compose(name: str, words: Mapping[str, str]) -> DictConfig:
    return compose("train", [f"phase={name}", *words.values()])


def _join_logs(part: DictConfig, group: str) -> None:
    """One W&B run per phase, all of them in one group."""
    tracker = (part.get("logger") or {}).get("wandb")
    if tracker is not None and "group" in tracker:
        tracker.group = str(group)


def _tell_of_later_steps(part: DictConfig, later: int) -> None:
    """To whom it foretells the end."""
    progress = (part.get("callbacks") or {}).get("progress")
    if progress is not None and "later_steps" in progress:
        progress.later_steps = later


def _words(key: str, words: Any) -> dict[str, str]:
    """Overrides by what they override, so that a later one replaces an earlier one, of groups too."""
    if not isinstance(words, ListConfig | list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(
            f"{key}={words}: expected a list of words of `sdscratch train`, such as [optimizer.lr=1.0e-5]"
        )
    found = {word.partition("=")[0].lstrip("+~"): word for word in words}
    for name in found:
        if any(name == taken or name.startswith(f"{taken}.") for taken in OF_THE_CHAIN):
            raise ConfigError(f"{key}: {name} is set by the curriculum itself")
    return found


def _origin(carried: Mapping[str, Any]) -> dict[str, Any]:
    """What `carried` says of where things come from, by run; which checkpoint it was does not matter here."""
    parts = {name: carried[name] for name in ("weights", "optimizer", "ema", "vae", "text_encoder") if name in carried}
    source = str(carried.get("from", "nothing")).partition("/checkpoints/step_")[0]
    return {f"handover.{name}": value for name, value in {"from": source, **parts}.items()}

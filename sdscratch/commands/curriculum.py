"""`sdscratch curriculum`: phases one after the other, each from the final checkpoint of the one before.

Whatever is killed, the same command goes on: what a phase takes over is decided and written down before it begins, the phase
itself is a run that resumes, and that it is done is written down when its model lies in its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig

from sdscratch.checkpoint_file import Checkpoint
from sdscratch.commands import launch
from sdscratch.commands.phases import Phase, phases_of
from sdscratch.config.words import screen
from sdscratch.console import say, warn
from sdscratch.errors import ConfigError, RunFolderError, StoppedError
from sdscratch.run_folder import folder_below
from sdscratch.training.curriculum import CurriculumFolder, Entry, measures, set_aside, trained_on
from sdscratch.training.preemption import StopSignals


def run(cfg: DictConfig) -> None:
    """Train what is not done yet, in order. The configuration has been checked; those of the phases are checked here."""
    if launch.is_rank():
        raise ConfigError(
            "a curriculum starts each phase itself, on all its devices: call it without torchrun and with srun -n 1"
        )
    phases = phases_of(cfg)
    folder = CurriculumFolder(folder_below(cfg.paths.curricula, cfg.name))
    try:
        with StopSignals(str(folder.path)):
            folder.lock()
            chain = Chain(folder, phases)
            chain.compare(rerun=cfg.on_change == "rerun")
            for phase in phases:
                chain.train(phase)
    except StoppedError as error:
        raise error.continued_by("the same `sdscratch curriculum`") from error
    finally:
        folder.unlock()


class Chain:
    """Phases, and what the manifest says of them."""

    def __init__(self, folder: CurriculumFolder, phases: Sequence[Phase]) -> None:
        self.folder, self.phases = folder, phases
        known = folder.entries()
        self.entries = {phase.name: known.get(phase.name, Entry(phase.name)) for phase in phases}
        self.entries |= {name: entry for name, entry in known.items() if name not in self.entries}  # asked for before

    def compare(self, rerun: bool) -> None:
        """Look for phases that are done, or have begun to learn, and are configured differently now.

        Raises ConfigError, with the old and new values; or, to `rerun`, marks them stale, and all that builds on them, even
        where it is not asked for now.
        """
        changed = {phase.name: phase.changed(self.entries[phase.name]) for phase in self.phases}
        lines = [f"{name}: {change}" for name, changes in changed.items() for change in changes]
        if not lines:
            return
        headline = f"{self.folder.path}: phases that have been trained are configured differently now."
        if not rerun:
            remedy = "Set this back, choose another name=, or train them and what builds on them again: on_change=rerun"
            raise ConfigError(screen(f"{headline} {remedy}", lines))
        stale = {name: self.entries[name] for name in changed if changed[name]}
        while more := {
            n: e for n, e in self.entries.items() if n not in stale and any(map(e.builds_on, stale.values()))
        }:
            stale |= more
        self.entries |= {name: replace(entry, status="stale") for name, entry in stale.items()}
        self.folder.write(self.entries, "stale")
        say(screen(headline, [*lines, f"stale, to be trained again: {', '.join(sorted(stale))}"]))

    def train(self, phase: Phase) -> None:
        """Bring one phase to its end; nothing to do where it is there."""
        where = f"{self.folder.path}: phase {self.phases.index(phase) + 1} of {len(self.phases)}, {phase.name}"
        if self.entries[phase.name].status == "done":
            say(f"{where}, is done")
            return
        if not self.entries[phase.name].has_learnt():
            self._begin(phase)
        carried = self.entries[phase.name].carried or {}
        say(f"{where}, {_said(carried)}")
        self._train(phase)
        run = phase.folder
        self._write(
            phase,
            "finish",
            status="done",
            carried={**carried, **(run.lineage().get("init_from") or {})} or None,
            samples_seen=run.state()["samples_seen"],
            data=trained_on(run),
            metrics=measures(run),
        )

    def _begin(self, phase: Phase) -> None:
        """Decide what the phase takes over, and write it down before anything goes on from it.

        Once more where it was decided before, and nothing has been learnt from it.
        """
        status = self.entries[phase.name].status
        if status == "stale" and phase.folder.path.exists():
            say(f"{phase.folder.path} is stale: it is {set_aside(phase.folder)} now")
        if status != "running" and phase.folder.holds_a_run():
            raise RunFolderError(
                f"{phase.folder.path} holds a run that {self.folder.manifest_file} knows nothing of: move it away, or "
                "choose another name="
            )
        carried = {**self._weights(phase), **phase.models()} or None
        entry = Entry(phase.name, "running", str(phase.folder.path), carried)
        self._write(phase, "begin", **{name: value for name, value in vars(entry).items() if name != "name"})

    def _weights(self, phase: Phase) -> dict[str, Any]:
        how = {name: phase.cfg.init[name] for name in ("weights", "optimizer", "ema")}
        if phase.before is None:
            return {"from": str(phase.cfg.init_from), **how} if phase.cfg.init_from is not None else {}
        final = self._final_checkpoint(phase.before)
        numbers = {"step": final.step, "samples_seen": final.samples_seen, "sha256": final.sha256}
        return {"from": str(final.path), **numbers, **how}

    def _final_checkpoint(self, phase: Phase) -> Checkpoint:
        """Of a finished phase, read whole. One that is damaged since is made again, from the newest that is not."""
        final = phase.folder.newest_intact_checkpoint()
        if final is None or final.step < phase.cfg.max_steps:
            warn(f"{phase.folder.path} has no valid checkpoint of its last step any more: training up to it again")
            phase.folder.set_state(status="stopped")
            self._train(phase)
            final = phase.folder.newest_intact_checkpoint()
        assert final is not None
        return final

    def _train(self, phase: Phase) -> None:
        """As `sdscratch train` would, with the weights that the manifest names where no checkpoint is there yet."""
        from sdscratch.commands.train import train  # with all that a first look at the manifest does not need

        phase.cfg.init_from = (self.entries[phase.name].carried or {}).get("from")
        train(phase.cfg)

    def _write(self, phase: Phase, moment: str, **changes: Any) -> None:
        self.entries[phase.name] = replace(self.entries[phase.name], **changes)
        self.folder.write(self.entries, f"{moment}/{phase.name}")


def _said(carried: dict[str, Any]) -> str:
    """What a phase takes over, in words."""
    if "from" not in carried:
        return "from random weights"
    optimizer = "its" if carried["optimizer"] == "keep" else "a new"
    average = "its" if carried["ema"] == "keep" else "a new"
    return f"with the {carried['weights']} weights of {carried['from']}, {optimizer} optimizer, {average} average"

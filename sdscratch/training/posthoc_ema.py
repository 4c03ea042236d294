"""Snapshots of averages during training, out of which one of any length is put together afterwards: see power_ema.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from torch import Tensor

from sdscratch.checkpoint_file import Checkpoint, checkpoint_path, checkpoints_in, forget_after, write_checkpoint
from sdscratch.console import warn
from sdscratch.errors import ConfigError
from sdscratch.files import remove_halves
from sdscratch.run_folder import RunFolder
from sdscratch.training.latent_diffusion import LatentDiffusion
from sdscratch.training.power_ema import PowerEma, Profile, combination
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised


def snapshot_folder(run: RunFolder) -> Path:
    """Where a run's snapshots are: files as its checkpoints are, each with its side-car."""
    return run.path / "posthoc_ema"


class PosthocEma(StepCallback):
    """Tracks an average of each of these `lengths`, in float32, and keeps a snapshot of all every `every` steps and at the end.

    Every snapshot stays. The averages are in each checkpoint too, so a resumed run goes on to the same bits. A snapshot that
    cannot be written is said on stderr, and those that are left make do without it.
    """

    def __init__(self, every: int, lengths: Sequence[float] = (0.05, 0.10)) -> None:
        super().__init__(every)
        if not lengths or len(set(lengths)) < len(lengths):
            raise ConfigError(f"callbacks.posthoc_ema.lengths is {[*lengths]}: expected at least one length, each once")
        self.lengths = [*lengths]

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        if not isinstance(module, LatentDiffusion):
            raise ConfigError("callbacks.posthoc_ema is for stage=diffusion: set callbacks.posthoc_ema=null")
        self.averages = {str(length): PowerEma(module.network, length) for length in self.lengths}
        module.further_averages += self.averages.values()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        super().on_train_start(trainer, module)
        if trainer.is_global_zero:
            folder = snapshot_folder(RunFolder(trainer.default_root_dir))
            remove_halves(folder)
            forget_after(folder, trainer.global_step)  # of a way that the run has turned back from

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if trainer.is_global_zero and self.is_due(trainer, step):
            folder = snapshot_folder(RunFolder(trainer.default_root_dir))
            with module.aside(), said_not_raised("a snapshot of the averages is lost"):
                write_checkpoint(checkpoint_path(folder, step), self.state_dict(), step, module.samples_seen(step))

    def state_dict(self) -> dict[str, Any]:
        return {name: average.state_dict() for name, average in self.averages.items()}

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Raises ConfigError where the run has no such averages: they would have to be tracked from its start."""
        saved = checkpoint["callbacks"].get(self.state_key, {})
        if saved.keys() != self.averages.keys():
            raise ConfigError(
                f"callbacks.posthoc_ema.lengths is {self.lengths}, but the run has tracked "
                f"{[float(name) for name in saved] or 'none'} since its start: set these, or callbacks.posthoc_ema=null"
            )
        for name, average in self.averages.items():
            average.load_state_dict(saved[name])


class Reconstruction(NamedTuple):
    """weights: a state dict, float32. distance: of its profile from the one asked for, as a share of that one's size."""

    weights: dict[str, Tensor]
    step: int
    samples_seen: int
    snapshots: int
    distance: float


def reconstruct(run: RunFolder, length: float, step: int | None = None) -> Reconstruction:
    """The average of a length, as it would be after `step` steps, out of the intact snapshots up to there.

    step: one of those of which there is a snapshot; None means the last of them. Raises ConfigError.
    """
    intact = list(_intact(checkpoints_in(snapshot_folder(run))))
    used = [snapshot for snapshot in intact if step is None or snapshot.step <= step]
    if not used or step not in (None, used[-1].step):
        steps = ", ".join(str(snapshot.step) for snapshot in intact)
        raise ConfigError(
            f"{run.path} has no snapshot {'at all' if not intact else f'of step {step}, only of {steps}'}. "
            "They are written by runs with callbacks=posthoc_ema"
        )
    contents = [snapshot.load(mapped=True) for snapshot in used]
    parts = [(Profile(float(name), a["num_updates"]), a["weights"]) for part in contents for name, a in part.items()]
    parts = [(profile, weights) for profile, weights in parts if profile.updates]
    profiles = [profile for profile, _ in parts]
    factors, distance = combination(profiles, Profile(length, max(profile.updates for profile in profiles)))
    newest = parts[-1][1]
    weights = {
        name: sum(f * part[name].double() for f, (_, part) in zip(factors.tolist(), parts, strict=True)).float()
        if tensor.is_floating_point()
        else tensor.clone()
        for name, tensor in newest.items()
    }
    return Reconstruction(weights, used[-1].step, used[-1].samples_seen, len(used), distance)


def _intact(snapshots: Sequence[Checkpoint]) -> Iterator[Checkpoint]:
    for snapshot in snapshots:
        if snapshot.is_intact():
            yield snapshot
        else:
            warn(f"{snapshot.path} is damaged (its checksum does not fit): going without it")

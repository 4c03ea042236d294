"""Where a run starts: at a checkpoint, and past which positions; and how it goes back to one after too many bad steps."""

from __future__ import annotations

from typing import NamedTuple

from sdscratch.checkpoint_file import Checkpoint
from sdscratch.console import warn
from sdscratch.data.order import data_step, skip
from sdscratch.errors import DivergedError
from sdscratch.run_folder import RunFolder


class Start(NamedTuple):
    """checkpoint: None at the beginning. skipped: data steps never to be read, see sdscratch.data.order.data_step."""

    checkpoint: Checkpoint | None
    skipped: list[list[int]]

    @property
    def step(self) -> int:
        """Optimizer steps done before."""
        return self.checkpoint.step if self.checkpoint else 0


def start_at(folder: RunFolder, checkpoint: Checkpoint | None) -> Start:
    """Skipping what the checkpoint says, and what the run has skipped after it was written."""
    ranges = checkpoint.load(mapped=True).get("skipped", []) if checkpoint else []
    skipped: list[list[int]] = []
    for first, end in [*ranges, *(rewind["skipped"] for rewind in folder.state().get("rewinds", []))]:
        skipped = skip(skipped, first, end)
    return Start(checkpoint, skipped)


def turn_back(folder: RunFolder, step: int, bad_since: int, skipped: list[list[int]], most: int) -> Start:
    """Go back from `step` to the last good checkpoint, and skip all positions from there to here.

    Good is one from before the bad steps, which began after `bad_since` steps, and of those one that a good step has
    followed, if there is any: so a rewind that did not help is followed by one to an older checkpoint. What has been
    decided is in state.json before anything goes on from it.

    most: rewinds of a run. Raises DivergedError when they are used up, or when there is no checkpoint to go back to.
    """
    rewinds = folder.state().get("rewinds", [])
    bad = f"{folder.path} diverged: steps {bad_since + 1} to {step} had no finite loss or gradient"
    remedy = "See bad_steps.jsonl; lower optimizer.lr, or look at these samples"
    if len(rewinds) >= most:
        raise DivergedError(f"{bad}, after {len(rewinds)} rewinds (callbacks.guard.rewinds={most}). {remedy}.")
    known = [checkpoint for checkpoint in folder.checkpoints() if checkpoint.step <= bad_since]
    proven = [checkpoint for checkpoint in known if checkpoint.step < bad_since]
    checkpoint = next((c for c in reversed(proven or known) if c.is_intact()), None)
    if checkpoint is None:
        raise DivergedError(f"{bad}, and there is no checkpoint from before. {remedy}.")
    folder.forget_checkpoints_after(checkpoint.step)
    rewind = {
        "from": step,
        "to": checkpoint.step,
        "skipped": [data_step(checkpoint.step, skipped), data_step(step, skipped)],
    }
    folder.set_state(rewinds=[*rewinds, rewind])
    warn(
        f"{step - bad_since} bad steps in a row: back from step {step} to {checkpoint.step}, skipping what was "
        f"read since (rewind {len(rewinds) + 1} of {most})"
    )
    return start_at(folder, checkpoint)

"""The tiny experiment loses what it always did: a change of one bit anywhere in the chain shows here."""

from __future__ import annotations

import json

import pytest
from golden.write import FILE, environment

from sdscratch.commands.train import train


def losses(run) -> list[float]:
    return [row["train/loss"] for row in run.read_metrics()]


def test_the_losses_are_those_on_record(tiny_run):
    """If they were meant to change: python -m tests.golden.write."""
    record = json.loads(FILE.read_text())
    recorded = [float.fromhex(loss) for loss in record["train/loss"]]
    assert len(recorded) == 30
    if record["made_with"] == environment():
        assert losses(tiny_run) == recorded
    else:
        assert losses(tiny_run) == pytest.approx(recorded, rel=1e-4)


def test_a_second_run_has_the_same_losses_bit_for_bit_whatever_is_measured_and_shown_meanwhile(tiny_run, tiny_config):
    bare = [f"callbacks.{name}=null" for name in ("validation", "previews", "plots", "progress", "checkpoints")]
    assert losses(train(tiny_config(*bare))) == losses(tiny_run)

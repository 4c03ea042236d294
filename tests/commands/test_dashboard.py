"""The dashboard shows what runs really write."""

from __future__ import annotations

import re
from importlib.util import find_spec

import pytest

from sdscratch.cli import main
from sdscratch.commands.dashboard import view
from sdscratch.config import compose, plain

SELDOM = {"bad_steps", "spikes", "quarantined", "mfu", "gamma", "val/loss/faces"}
"""Columns that a run has only when there is something to say; see test_throughput.py, test_bad_numbers.py."""
OTHER_STAGES = {"val/reconstruction", "val/psnr", "val/r_at_1"}


def test_every_panel_has_a_column_or_a_picture_of_a_run(tiny_run):
    written = {name for row in tiny_run.read_metrics() for name in row} | SELDOM | OTHER_STAGES
    panels = [panel for section in compose("dashboard").sections for panel in section.panels]
    shown = {name for panel in panels for name in panel.get("metrics", [])}
    assert shown <= written
    for panel in panels:
        assert "pattern" not in panel or any(re.fullmatch(panel.pattern, name) for name in written), panel
    found = {name for name in written for panel in panels if re.fullmatch(panel.get("pattern", ""), name)}
    assert written - shown - found == {"step", "samples_seen"}  # nothing that is written is missing


def test_without_the_package_it_says_what_to_install(capsys, monkeypatch):
    if find_spec("wandb_workspaces") is None:
        assert main(["dashboard"]) == 2
        assert "pip install 'sdscratch[dashboard]'" in capsys.readouterr().err
    else:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("HOME", "/nonexistent")
        assert main(["dashboard"]) == 2
        assert "there is no W&B key" in capsys.readouterr().err


def test_the_view_holds_every_panel_of_the_definition():
    pytest.importorskip("wandb_workspaces")
    about = plain(compose("dashboard", ["entity=me"]))
    model = view(about)._to_model().model_dump_json()
    for section in about["sections"]:
        assert all(panel["title"] in model for panel in section["panels"])
    assert "samples_seen" in model and "val/loss_t.*" in model

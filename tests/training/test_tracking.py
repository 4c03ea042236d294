"""What people look at: curves, sample grids with their prompts, and the same in W&B."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import BARE

from sdscratch.commands.train import train
from sdscratch.config import check_config, compose
from sdscratch.data.grid import captioned_grid
from sdscratch.run_folder import RunFolder
from sdscratch.training.plots import draw_curves
from sdscratch.training.tracking import wandb_logger


def test_a_run_draws_its_curves(tiny_run):
    for name in ("train", "val", "rates"):
        with Image.open(tiny_run.plots / f"{name}.png") as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


def test_curves_can_be_drawn_of_one_row_without_validation(tmp_path):
    run = RunFolder(tmp_path)
    run.append_metrics({"step": 1, "train/loss": float("nan"), "lr": 0.1})
    draw_curves(run)
    assert sorted(path.name for path in run.plots.iterdir()) == ["rates.png", "train.png"]


def test_a_sample_grid_shows_each_prompt_under_its_picture(tiny_run):
    prompts = compose("train", ["experiment=tiny"]).stage.preview_prompts
    grid = Image.open(tiny_run.path / "samples" / "step_00000030" / "ema.png").convert("RGB")
    blank = captioned_grid([Image.new("RGB", (32, 32))] * len(prompts), prompts, columns=4)
    assert grid.size == blank.size
    text = np.asarray(grid)[140:]  # below cells of 128 pixels
    assert np.array_equal(text, np.asarray(blank)[140:])
    halves = np.array_split(text.min(2), len(prompts), axis=1)
    assert all((half < 100).sum() > 100 for half in halves)  # dark letters under each


def wandb_runs(folder: Path) -> list[str]:
    """The ids of the W&B sessions that were written below a run's folder."""
    return [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]


def test_a_run_and_its_resumes_are_one_run_of_wandb_in_the_run_folder(tiny_config, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = train(tiny_config("logger=default", "max_steps=1", "callbacks.plots=null"))
    bare = ("logger=default", "callbacks.validation=null", *BARE)
    for steps in (2, 3):
        train(tiny_config(*bare, "resume_from=auto", f"max_steps={steps}"))
    ids = wandb_runs(run.path)
    assert len(ids) == 3
    assert set(ids) == {(run.path / "wandb" / "id").read_text()}
    other = wandb_logger(str(tmp_path / "another"), "another", mode="offline")
    assert other.experiment.id not in ids
    log = b"".join(path.read_bytes() for path in (run.path / "wandb").rglob("*.wandb"))
    assert b"val/loss_t000_250" in log
    assert b"samples_per_second" in log
    assert list((run.path / "wandb").rglob("media/images/samples/*.png"))
    assert not (tmp_path / "wandb").exists()


def test_a_run_may_be_called_by_a_number(tmp_path):
    check_config(compose("train", ["experiment=tiny", "logger=default", "name=5"]))
    assert wandb_logger(str(tmp_path), 5, mode="offline")._name == "5"


@pytest.mark.parametrize(
    ("mode", "key", "environment", "offline"),
    [
        ("auto", "", None, True),
        ("auto", "k" * 40, None, False),
        ("offline", "k" * 40, None, True),
        ("online", "", None, False),
        ("online", "k" * 40, "offline", True),
    ],
)
def test_nobody_without_a_key_is_asked_for_one(tmp_path, monkeypatch, mode, key, environment, offline):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", environment or "")
    assert wandb_logger(str(tmp_path), "try1", mode=mode)._offline is offline


def test_a_broken_netrc_is_no_key(tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("what is this")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_API_KEY", "")
    assert wandb_logger(str(tmp_path), "try1")._offline
    assert os.environ["WANDB_SILENT"] == "true"

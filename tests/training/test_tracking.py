"""What people look at: curves, sample grids with their prompts, and the same in W&B."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from stages import latent_diffusion, texts_encoded
from tiny import BARE, SMALLER
from wandb_servers import server, silent_server

from sdscratch.commands.train import train
from sdscratch.config import check_config, compose
from sdscratch.data.grid import captioned_grid
from sdscratch.run_folder import RunFolder
from sdscratch.training import LatentDiffusion
from sdscratch.training.plots import _panels, draw_curves
from sdscratch.training.tracking import SECONDS_TO_START, WandbTracker


def test_a_run_draws_its_curves(tiny_run):
    for name in ("train", "val", "rates"):
        with Image.open(tiny_run.plots / f"{name}.png") as image:
            assert image.format == "PNG"
            assert np.asarray(image.convert("L")).std() > 5


@pytest.mark.parametrize("content", [b"", b"\xff/..", b"../x\n"])
def test_an_id_that_a_crash_has_left_empty_or_damaged_is_written_anew_and_kept(tmp_path, content):
    (tmp_path / "wandb").mkdir()
    (tmp_path / "wandb" / "id").write_bytes(content)
    new = WandbTracker(str(tmp_path), "try1").version
    assert len(new) == 8
    assert WandbTracker(str(tmp_path), "try1").version == new


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


def test_losses_by_timestep_share_a_panel_and_so_do_those_by_source():
    names = ["val/loss", "val/loss_t000_250", "val/loss_t250_500", "val/loss/faces", "val/loss/bodies", "val/psnr"]
    assert {title: list(curves) for title, curves in _panels(names).items()} == {
        "val/loss": ["val/loss"],
        "val/loss by timestep": ["t000_250", "t250_500"],
        "val/loss by source": ["faces", "bodies"],
        "val/psnr": ["val/psnr"],
    }


def test_the_prompts_of_real_previews_are_fixed_and_of_every_kind():
    cfg = compose("train", ["name=x", "max_steps=1", "global_batch_size=1", "dataset.path=x"])
    kinds = ["forest", "landscape", "city", "vehicle", "portrait", "full_body", "animals", "architecture", "food"]
    assert list(cfg.prompts) == [f"{kind}_{number}" for kind in kinds for number in (1, 2)]
    assert list(cfg.stage.preview_prompts) == list(cfg.prompts.values())
    assert len(set(cfg.stage.preview_prompts)) == 18


def test_prompts_of_previews_are_encoded_once_in_a_run(tiny_config):
    module, _ = latent_diffusion(tiny_config("stage.preview_prompts=[a red circle, a blue ring]"))
    with texts_encoded(module.encoders.text) as encoded:
        first, again = (module.preview(module.ema.network, []) for _ in range(2))
    assert encoded == [1, 1, 1]  # the prompts, and the null condition
    assert first.captions == ["a red circle", "a blue ring"]
    for one, other in zip(first.images, again.images, strict=True):
        assert np.array_equal(np.asarray(one), np.asarray(other))


KEY = "k" * 40


@pytest.fixture
def wandb_at(monkeypatch):
    """`wandb_at(address)`: W&B is there, for those who have a key. It may take so many seconds to answer."""
    import wandb

    def choose(address: str, key: str = KEY, patience: float = 60.0) -> None:
        monkeypatch.setattr("sdscratch.training.tracking.SECONDS_TO_START", patience)
        wandb.teardown()
        monkeypatch.delenv("WANDB_MODE", raising=False)
        monkeypatch.setenv("WANDB_API_KEY", key)
        monkeypatch.setenv("WANDB_BASE_URL", address)

    yield choose
    wandb.teardown()


def wandb_runs(folder: Path) -> list[str]:
    """The ids of the offline W&B sessions that were written below a run's folder."""
    return [path.name.rpartition("-")[2] for path in (folder / "wandb").glob("offline-run-*")]


def test_a_run_and_its_resumes_are_one_run_of_wandb_in_the_run_folder(tiny_config, monkeypatch, tmp_path, recwarn):
    monkeypatch.chdir(tmp_path)
    group = "logger.wandb.group=my curriculum"
    run = train(tiny_config("logger=default", "max_steps=1", "callbacks.plots=null", group))
    bare = ("logger=default", "callbacks.validation=null", *BARE)
    for steps in (2, 3):
        train(tiny_config(*bare, "resume_from=auto", f"max_steps={steps}"))
    ids = wandb_runs(run.path)
    assert len(ids) == 3
    assert set(ids) == {(run.path / "wandb" / "id").read_text()}
    assert WandbTracker(str(tmp_path / "another"), "another", mode="offline").experiment.id not in ids
    log = b"".join(path.read_bytes() for path in (run.path / "wandb").rglob("*.wandb"))
    assert b"val/loss_t000_250" in log
    assert b"my curriculum" in log
    (table,) = (json.loads(path.read_text()) for path in (run.path / "wandb").rglob("*.table.json"))
    assert table["columns"] == ["prompt", "weights", "picture"]
    prompts = compose("train", ["experiment=tiny"]).stage.preview_prompts
    assert [row[:2] for row in table["data"]] == [[prompt, "ema"] for prompt in prompts]
    assert b"samples_per_second" in log
    assert list((run.path / "wandb").rglob("media/images/samples/*.png"))
    assert not (tmp_path / "wandb").exists()
    assert not [warning for warning in recwarn if "anonymous" in str(warning.message)]


def test_a_run_may_be_called_by_a_number(tmp_path):
    check_config(compose("train", ["experiment=tiny", "logger=default", "name=5"]))
    assert WandbTracker(str(tmp_path), 5, mode="offline").name == "5"


@pytest.mark.parametrize(
    ("mode", "key", "environment", "expected"),
    [
        ("auto", "", "", "offline"),
        ("auto", KEY, "", "online"),
        ("offline", KEY, "", "offline"),
        ("online", KEY, "offline", "offline"),
        ("online", "", "", "offline"),
    ],
)
def test_nobody_without_a_key_is_asked_for_one(tmp_path, monkeypatch, wandb_at, mode, key, environment, expected):
    with server() as serving:
        wandb_at(serving.address, key)
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("WANDB_MODE", environment)
        tracker = WandbTracker(str(tmp_path), "try1", mode=mode)
        assert tracker.experiment.settings.mode == expected
        tracker.finalize("success")


def test_a_broken_netrc_is_no_key(tmp_path, monkeypatch, wandb_at):
    wandb_at("http://127.0.0.1:9", key="")
    (tmp_path / ".netrc").write_text("what is this")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert WandbTracker(str(tmp_path), "try1").experiment.offline


def started(folder: Path, most: float = 45) -> WandbTracker:
    """A tracker that has been started, in less than `most` seconds: half of what W&B would wait by itself."""
    tracker = WandbTracker(str(folder), "try1")
    start = time.perf_counter()
    tracker.experiment.log({"first": 1})
    assert time.perf_counter() - start < most
    return tracker


def one_warning(capsys) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if "W&B" in line]
    assert len(lines) == 1 and lines[0].startswith("warning: ")
    return lines[0]


@pytest.mark.parametrize("fault", ["silent", "refused", "bad key", "no key at all"])
def test_a_server_that_cannot_be_used_means_offline_files_and_one_warning(tmp_path, wandb_at, capsys, fault):
    patience = {"silent": SECONDS_TO_START, "refused": 1.0}.get(fault, 60.0)
    with silent_server() as silent, server(401) as strict:
        address = {"silent": silent, "refused": "http://127.0.0.1:9"}.get(fault, strict.address)
        wandb_at(address, "short" if fault == "no key at all" else KEY, patience)
        tracker = started(tmp_path)
        assert tracker.experiment.settings.mode == "offline"
        assert "going on offline" in one_warning(capsys)
        tracker.log_metrics({"train/loss": 0.5}, step=1)
        tracker.finalize("success")
    assert wandb_runs(tmp_path) == [tracker.version]
    files = [*tmp_path.glob("wandb/offline-run-*/*.wandb")]
    assert b"train/loss" in b"".join(file.read_bytes() for file in files)


def test_a_server_that_falls_silent_later_delays_no_row_and_the_end_only_so_much(
    tmp_path, wandb_at, capsys, monkeypatch
):
    monkeypatch.setattr("sdscratch.training.tracking.SECONDS_TO_FINISH", 2.0)
    with server() as serving:
        wandb_at(serving.address)
        tracker = started(tmp_path)
        assert tracker.experiment.settings.mode == "online"
        serving.freeze.set()
        start = time.perf_counter()
        for step in range(100):
            tracker.log_metrics({"train/loss": 0.5}, step)
        assert (time.perf_counter() - start) / 100 < 0.01
        tracker.finalize("success")
        assert time.perf_counter() - start < 60  # the server would be silent for ever
    assert "wandb sync" in one_warning(capsys)


def child(name: str) -> int:
    """This process's child of that name."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        process, command, _, parent, *_ = file.read_text().split()
        if command == f"({name})" and int(parent) == os.getpid():
            return int(process)
    raise LookupError(name)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the process in /proc")
def test_a_run_outlives_the_process_of_wandb(tiny_config, wandb_at, capsys):
    """That it is killed in mid-run, as when memory is short, costs the rest of the curves and nothing else."""
    with server() as serving:
        wandb_at(serving.address)

        losses, calls = LatentDiffusion.losses, []

        def losses_and_a_kill(module, batch):
            calls.append(batch)
            if len(calls) == 3:
                os.kill(child("wandb-core"), signal.SIGKILL)
            return losses(module, batch)

        with patch.object(LatentDiffusion, "losses", losses_and_a_kill):
            run = train(tiny_config(*SMALLER, "logger=default", "max_steps=8"))
    assert [row["step"] for row in run.read_metrics()] == list(range(1, 9))
    assert "going on without it" in one_warning(capsys)


def test_a_silent_server_takes_less_than_a_twentieth_of_the_time_of_training(tiny_config, wandb_at):
    """Of steps of some 20 ms, with a row every fifth step: real steps are longer and their rows fewer."""
    seconds, log = [], WandbTracker.log_metrics

    def timed_log(*arguments, **named) -> None:
        start = time.perf_counter()
        log(*arguments, **named)
        seconds.append(time.perf_counter() - start)

    with silent_server() as address, patch.object(WandbTracker, "log_metrics", timed_log):
        wandb_at(address, patience=1.0)
        run = train(tiny_config(*SMALLER, "logger=default", "max_steps=50", "callbacks.metrics.every=5"))
    training = sum(20 / row["samples_per_second"] for row in run.read_metrics())
    assert len(seconds) == 10
    assert sum(sorted(seconds)[:-1]) < 0.05 * training  # others may take the processor away from one

"""`-m`: a run for each combination, in a folder of its own; whatever happens to one of them."""

from __future__ import annotations

import csv
import json
import os
import signal
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from PIL import Image
from tiny import SMALLER

from sdscratch.cli import main
from sdscratch.commands.sweep import _values
from sdscratch.config import compose
from sdscratch.run_folder import RunFolder
from sdscratch.training import LatentDiffusion

GRID = ("objective.min_snr_gamma=1,5", "optimizer.lr=5.0e-4,1.0e-3")
JOBS = [
    "min_snr_gamma-1_lr-0.0005",
    "min_snr_gamma-1_lr-0.001",
    "min_snr_gamma-5_lr-0.0005",
    "min_snr_gamma-5_lr-0.001",
]
QUICK = (*(word for word in SMALLER if not word.startswith("callbacks.validation")), "max_steps=2")


def sweep(folder: Path, data: Path, *words: str) -> int:
    places = ("experiment=tiny", "name=grid", f"paths.runs={folder}", f"paths.data={data}", "threads=1")
    return main(["train", "-m", *places, *words])


@pytest.fixture(scope="module")
def grid(tmp_path_factory, tiny_data) -> Path:
    """The folder of a sweep of 2 x 2 runs. Look, do not touch: tests share it."""
    runs = tmp_path_factory.mktemp("runs")
    assert sweep(runs, tiny_data, *QUICK, *GRID) == 0
    return runs / "grid"


def test_each_combination_is_a_run_with_an_objective_that_is_its_last_unweighted_validation_loss(grid):
    assert sorted(path.name for path in grid.iterdir() if path.is_dir()) == sorted(JOBS)
    assert (grid / "multirun.yaml").is_file()
    for name in JOBS:
        run = RunFolder(grid / name)
        assert run.state()["status"] == "done" and run.model_folder.is_dir()
        objective = json.loads((run.path / "objective.json").read_text())
        assert objective == run.objective()
        assert objective == {
            "metric": "val/loss",
            "value": run.read_metrics()[-1]["val/loss"],
            "weights": "ema",
            "unweighted": True,
            "step": 2,
            "samples_seen": 8,
        }
    weighted, other = (RunFolder(grid / name).read_metrics()[0] for name in (JOBS[0], JOBS[2]))
    assert weighted["train/loss"] < 0.9 * other["train/loss"]  # the same weights and samples, only weighted otherwise
    assert weighted["val/loss" if "val/loss" in weighted else "train/loss_unweighted"] == pytest.approx(
        other["val/loss" if "val/loss" in other else "train/loss_unweighted"], rel=1e-6
    )


def test_the_same_command_again_trains_nothing_that_is_finished_and_goes_on_with_the_rest(grid, tiny_data, capsys):
    before = {path: path.stat().st_mtime_ns for path in grid.rglob("*.ckpt")}
    unfinished = RunFolder(grid / JOBS[1])
    unfinished.set_state(status="stopped")
    assert sweep(grid.parent, tiny_data, *QUICK, *GRID) == 0
    said = capsys.readouterr().out
    assert said.count("is finished: nothing to do") == 3
    assert unfinished.state()["status"] == "done"
    assert unfinished.objective()["value"] == unfinished.read_metrics()[-1]["val/loss"]
    assert {path: path.stat().st_mtime_ns for path in grid.rglob("*.ckpt")} == before


def test_a_finished_run_is_not_taken_for_one_of_other_settings(grid, tiny_data, capsys):
    one = ("objective.min_snr_gamma=choice(1)", "optimizer.lr=choice(5.0e-4)")
    assert sweep(grid.parent, tiny_data, *QUICK, *one, "caption_dropout=0.5") == 2
    assert "caption_dropout: 0.1 -> 0.5): choose another name=" in capsys.readouterr().err
    assert sweep(grid.parent, tiny_data, *QUICK, *one, "dataset.num_workers=1", "callbacks.metrics.every=2") == 0


def test_the_table_of_a_sweep_ranks_it_draws_it_and_warns_of_weighted_losses(grid, capsys):
    assert main(["sweep-table", str(grid)]) == 0
    said = capsys.readouterr()
    values = {name: RunFolder(grid / name).objective()["value"] for name in JOBS}
    order = sorted(JOBS, key=lambda name: values[name])
    assert sorted(JOBS, key=said.out.index) == order
    assert "train/loss does not compare" in said.err and "objective.min_snr_gamma: " in said.err
    with (grid / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val/loss"]) for row in rows] == [values[name] for name in order]
    assert {(row["objective.min_snr_gamma"], row["optimizer.lr"]) for row in rows} == {
        (gamma, lr) for gamma in ("1", "5") for lr in ("0.0005", "0.001")
    }
    assert [row["run"] for row in json.loads((grid / "table.json").read_text())["runs"]] == [row["run"] for row in rows]
    with Image.open(grid / "table.png") as picture:
        assert picture.format == "PNG" and np.asarray(picture.convert("L")).std() > 20


def test_a_job_that_fails_costs_the_others_nothing(tmp_path, tiny_data, capsys):
    words = (*QUICK, "max_steps=1", "optimizer.lr=-1,1.0e-3", "callbacks.validation.every=1")
    assert sweep(tmp_path, tiny_data, *words) == 2
    *_, headline, why = capsys.readouterr().err.splitlines()
    assert headline == "sdscratch: 1 of 2 jobs failed; the same command again tries these once more:"
    assert why.startswith("  lr--1: ") and "Invalid learning rate: -1" in why
    assert RunFolder(tmp_path / "grid/lr-0.001").state()["status"] == "done"
    assert main(["sweep-table", str(tmp_path / "grid")]) == 0
    assert "not started" in capsys.readouterr().out


def test_a_folder_that_cannot_hold_a_sweep_is_found_before_the_first_job(tmp_path, capsys):
    (tmp_path / "none").write_text("a file")
    assert main(["train", "-m", "experiment=tiny", "name=none/x", f"paths.runs={tmp_path}", "seed=0,1"]) == 4
    assert "cannot write into" in capsys.readouterr().err


def test_a_bug_in_one_job_is_said_with_its_traceback_and_costs_the_others_nothing(tmp_path, tiny_data, capsys):
    losses = LatentDiffusion.losses

    def losses_with_a_bug(module, batch):
        if module.objective.min_snr_gamma == 1:
            raise KeyError("oops")
        return losses(module, batch)

    with patch.object(LatentDiffusion, "losses", losses_with_a_bug):
        assert sweep(tmp_path, tiny_data, *QUICK, "max_steps=1", "objective.min_snr_gamma=1,5") == 1
    said = capsys.readouterr().err
    assert "Traceback" in said and said.splitlines()[-1] == "  min_snr_gamma-1: KeyError: 'oops'"
    assert [RunFolder(tmp_path / "grid" / f"min_snr_gamma-{g}").state()["status"] for g in (1, 5)] == ["failed", "done"]


def test_a_signal_ends_the_sweep_not_only_its_job(tmp_path, tiny_data, capsys):
    words, losses = ("seed=0,1",), LatentDiffusion.losses

    def losses_and_a_signal(module, batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return losses(module, batch)

    with patch.object(LatentDiffusion, "losses", losses_and_a_signal):
        assert sweep(tmp_path, tiny_data, *QUICK, *words) == 143
    assert "grid/seed-0 was stopped by SIGTERM after step 1" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "grid").iterdir() if path.is_dir()] == ["seed-0"]
    assert sweep(tmp_path, tiny_data, *QUICK, *words) == 0
    assert "seed-0: going on after step 1" in capsys.readouterr().out
    assert all(RunFolder(tmp_path / "grid" / name).state()["step"] == 2 for name in ("seed-0", "seed-1"))


@pytest.mark.slow
def test_with_several_devices_each_job_is_one_launch(tmp_path, tiny_data, monkeypatch):
    """Real processes: two ranks, twice."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    ranks = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    assert sweep(tmp_path, tiny_data, *QUICK, *ranks, "max_steps=1", "optimizer.lr=5.0e-4,1.0e-3") == 0
    for name in ("lr-0.0005", "lr-0.001"):
        run = RunFolder(tmp_path / "grid" / name)
        assert run.state()["status"] == "done" and run.objective()["step"] == 1
        assert [row["step"] for row in run.read_metrics()] == [1]
        assert "devices: 2" in run.config_file.read_text()


def test_a_sweep_over_phases_needs_a_name_for_all_its_jobs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for word in ("phase=p2_laion_refined,p3_synthetic", "experiment=glob(*)"):
        assert main(["train", "-m", word]) == 2
        assert f"{word} gives the jobs different names: set name=" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def finished(folder: Path, swept: dict, value: object, metric: str = "val/loss") -> None:
    run = RunFolder(folder)
    run.create()
    run.set_state(status="done")
    (run.path / "sweep.json").write_text(json.dumps(swept))
    (run.path / "objective.json").write_text(json.dumps({"metric": metric, "value": value}))


def test_a_table_ranks_only_what_is_a_number_of_the_same_kind(tmp_path, capsys):
    finished(tmp_path / "a", {"lr": 1}, 0.5)
    finished(tmp_path / "b", {"lr": None}, 0.25)
    for number, value in enumerate(("low", [1], float("nan"), None)):
        finished(tmp_path / f"odd{number}", {"lr": 2 + number}, value)
    finished(tmp_path / "vae", {"lr": 9}, 0.125, metric="val/reconstruction")
    (tmp_path / "vae2").mkdir()
    (tmp_path / "vae2" / "sweep.json").write_text("{")
    assert main(["sweep-table", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "table.json").read_text())["runs"]
    assert [(row.get("lr"), row["val/loss"]) for row in rows][:2] == [(None, 0.25), (1, 0.5)]
    assert {row["val/loss"] for row in rows[2:]} == {None}
    assert "│ null" in capsys.readouterr().out


def test_jobs_that_differ_in_their_names_alone_are_listed_and_not_drawn(tmp_path, capsys):
    for name in ("a", "b"):
        finished(tmp_path / name, {}, 0.5)
    assert main(["sweep-table", str(tmp_path)]) == 2
    assert "its jobs differ in nothing but their names" in capsys.readouterr().err


def test_a_run_of_a_sweep_is_resumed_like_any_other(grid, capsys):
    run = RunFolder(grid / JOBS[0])
    assert main(["resume", str(run.path)]) == 0
    assert f"{run.path} is finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("swept", "folder"),
    [
        ({"optimizer.lr": 5e-06, "objective.min_snr_gamma": 3}, "min_snr_gamma-3_lr-5e-06"),
        ({"callbacks.a.every": 1, "callbacks.b.every": 2}, "callbacks.a.every-1_callbacks.b.every-2"),
        ({"noise_schedule@objective.noise_schedule": "cosine"}, "noise_schedule-cosine"),
        ({"objective.min_snr_gamma": None, "seed": -1}, "min_snr_gamma-None_seed--1"),
    ],
)
def test_folders_are_named_by_what_differs(swept, folder):
    assert _values(swept) == folder


def test_odd_values_make_plain_and_distinct_names():
    names = [
        _values({"model.block_out_channels": value}) for value in ([16, 32], [16.32], "16,32", "../..", "a b", "a/b")
    ]
    assert len(set(names)) == len(names)
    assert all(name.isascii() and not set(name) & set("/=,[]{}() ") for name in names)


def test_an_optuna_search_has_its_packages_or_says_which(capsys):
    try:
        import hydra_plugins.hydra_optuna_sweeper  # noqa: F401
    except ImportError:
        assert main(["train", "-m", "experiment=tiny", "sweep=optuna"]) == 2
        assert "pip install 'sdscratch[sweep]'" in capsys.readouterr().err
    else:
        assert compose("train", ["experiment=tiny", "sweep=optuna"]).name == "tiny"

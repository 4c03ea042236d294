"""One command, several processes: torchrun starts them, and the command ends as they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny import SMALLER

from sdscratch.commands.launch import Outcome, _why, ranks_to_start
from sdscratch.config import compose
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("launch")


def start(verb: str, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sdscratch", verb, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen) -> list[int]:
    """The living ranks that a command has started."""
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if parent == str(process.pid) and "sdscratch.commands.rank" in Path(f"/proc/{pid}/cmdline").read_text():
                found.append(int(pid))
        except OSError:
            continue
    return sorted(found)


def test_from_start_to_stop_to_end_two_ranks_are_one_run_in_one_folder(tmp_path, tiny_data):
    places = (f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "threads=1")
    devices = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu", "logger=default")
    run = RunFolder(tmp_path / "tiny")
    process = start("train", "experiment=tiny", *places, *devices, *SMALLER, "max_steps=100000")
    until(lambda: len(run.read_metrics()) >= 3, process)
    assert len(ranks_of(process)) == 2
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert time.monotonic() - begin < 5
    step = run.state()["step"]
    assert said.splitlines()[-1] == f"sdscratch: {run.path} was stopped by SIGINT after step {step}: " + (
        f"`sdscratch resume {run.path}` goes on"
    )
    assert "Traceback" not in said and said.count("from the start") == 1
    assert run.newest_intact_checkpoint().step == step

    process = start("resume", str(run.path), f"max_steps={step + 2}")
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert run.state()["status"] == "done" and run.state()["step"] == step + 2
    assert [row["step"] for row in run.read_metrics()] == list(range(1, step + 3))
    assert (run.path / "overrides.txt").read_text().startswith(f"resume {run.path}")
    assert len({path.name.rpartition("-")[2] for path in (run.path / "wandb").glob("offline-run-*")}) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.skipif(
    os.environ.get("SDS_FAULTS") != "long", reason="half a minute; tests/faults/test_ddp.py has it without the launcher"
)
def test_a_rank_that_dies_ends_the_command_with_exit_code_1_and_one_line(tmp_path, tiny_data):
    places = (f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "threads=1")
    devices = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    run = RunFolder(tmp_path / "tiny")
    process = start("train", "experiment=tiny", *places, *devices, *SMALLER, "max_steps=100000")
    until(lambda: len(run.read_metrics()) >= 1, process)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - begin < 5, said
    lines = [line for line in said.splitlines() if not line.startswith((str(run.path), "LatentDiffusion: step"))]
    assert len(lines) == 1 and "was killed by SIGKILL: `sdscratch resume" in lines[0]
    assert run.state()["status"] == "failed"


@pytest.fixture
def trainer(monkeypatch):
    """`trainer("trainer.devices=2", ...)`: that section of a configuration, as seen by a process that nothing has launched."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: (
        compose("train", ["experiment=tiny", "trainer=ddp", "trainer.accelerator=cpu", *words]).trainer
    )


@pytest.mark.parametrize(
    ("devices", "count"), [("1", 0), ("2", 2), ("[0, 1, 3]", 3), ("auto", 0), ("-1", 0), ("'0,1'", 2), ("'4'", 4)]
)
def test_one_process_per_device(trainer, devices, count):
    assert ranks_to_start(trainer(f"trainer.devices={devices}")) == count


@pytest.mark.parametrize(
    "started", [{"RANK": "0", "WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}]
)
def test_a_process_that_is_a_rank_starts_none(trainer, monkeypatch, started):
    section = trainer("trainer.devices=2", "trainer.num_nodes=1")
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert ranks_to_start(section) == 0


def test_several_machines_must_be_started_from_outside(trainer):
    with pytest.raises(ConfigError, match="num_nodes=2: start it on every node, by torchrun or srun"):
        ranks_to_start(trainer("trainer.devices=2", "trainer.num_nodes=2"))


def outcome(exit_code: int, message: str = "", bug: bool = False, at: float = 0.0) -> Outcome:
    return Outcome(exit_code, message, "Traceback of " + message if bug else "", at)


@pytest.mark.parametrize(
    ("exit_codes", "outcomes", "asked", "expected"),
    [
        ({0: 2, 1: -15}, {0: outcome(2, "no such data")}, 0, (2, "no such data")),
        ({0: 3, 1: 3}, {0: outcome(3, "diverged", at=1), 1: outcome(3, "diverged", at=2)}, 0, (3, "diverged")),
        ({0: 1, 1: -9}, {0: outcome(1, "RuntimeError: gloo", bug=True)}, 0, (1, "rank 1 was killed by SIGKILL")),
        (
            {0: 1, 1: 1},
            {0: outcome(1, "gloo", bug=True, at=2), 1: outcome(1, "KeyError: 'x'", bug=True, at=1)},
            0,
            (1, "rank 1 failed: KeyError"),
        ),
        ({0: 143, 1: 143}, {0: outcome(143, "stopped"), 1: outcome(143, "stopped")}, 0, (143, "SIGTERM")),
        ({0: 143, 1: 143}, {0: outcome(143, "stopped"), 1: outcome(143, "stopped")}, 2, (130, "SIGINT")),
        ({0: -10, 1: -15}, {}, 15, (143, "SIGTERM")),
        ({0: 4, 1: -15}, {0: outcome(4, "disk full")}, 15, (4, "disk full")),
    ],
)
def test_the_command_ends_as_the_rank_that_knows_why(tmp_path, exit_codes, outcomes, asked, expected):
    error = _why(RunFolder(tmp_path), exit_codes, outcomes, asked)
    assert error.exit_code == expected[0]
    assert expected[1] in str(error)

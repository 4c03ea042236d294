"""One command, several processes: torchrun starts them, and the command ends as they do."""

from __future__ import annotations

import fcntl
import os

import pytest

from sdscratch.cli import main
from sdscratch.commands.launch import Outcome, _in_use, _note_end, _remove_leftovers, _why, ranks_to_start
from sdscratch.config import compose
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder


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


def test_as_many_processes_as_devices(trainer, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="2 processes were started, but trainer.devices=1 x trainer.num_nodes=1"):
        ranks_to_start(trainer("trainer.devices=1"))


def test_a_sweep_is_not_run_once_per_rank(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert main(["train", "-m", "experiment=tiny", "seed=0,1"]) == 2
    assert "-m starts the runs itself" in capsys.readouterr().err


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


def test_cleaners_find_the_folder_that_ranks_share_locked(tmp_path):
    """They try for an exclusive lock, and pass over what they do not get."""
    cleaner = os.open(tmp_path, os.O_RDONLY)
    with _in_use(str(tmp_path)), pytest.raises(BlockingIOError):
        fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(cleaner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(cleaner)


def test_folders_of_killed_launchers_are_removed_and_those_in_use_are_not(tmp_path):
    dead, live, young, other = (
        tmp_path / name for name in ("sdscratch-dead", "sdscratch-live", "sdscratch-y", "other")
    )
    for folder in (dead, live, young, other):
        folder.mkdir()
    for folder in (dead, live, other):
        (folder / "config.yaml").touch()
    (tmp_path / "sdscratch-link").symlink_to(other)
    with _in_use(str(live)):
        _remove_leftovers(tmp_path)
    assert not dead.exists()
    assert (live / "config.yaml").exists() and young.exists() and (other / "config.yaml").exists()


def test_ranks_that_end_before_there_is_a_folder_leave_none(tmp_path):
    """And their own reason stands: a lock that cannot be made there is no news."""
    _note_end(RunFolder(tmp_path / "none"), ConfigError("resume_from=yes is unknown"))
    assert not (tmp_path / "none").exists()

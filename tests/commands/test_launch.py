"""One command, several processes: torchrun starts them, and the command ends as they do."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from sdscratch.cli import main
from sdscratch.commands.launch import Outcome, _in_use, _note_end, _remove_leftovers, _why, ranks_to_start
from sdscratch.commands.trainer import make_trainer
from sdscratch.config import compose
from sdscratch.errors import ConfigError, LostRankError
from sdscratch.files import write_json
from sdscratch.run_folder import RunFolder
from sdscratch.training import ranks
from sdscratch.training.preemption import StopSignals

TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.fixture
def trainer(monkeypatch):
    """`trainer("trainer.devices=2", ...)`: that section of a configuration, as seen by a process that nothing has launched."""
    for name in ("RANK", "WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    return lambda *words: (
        compose("train", ["experiment=tiny", "trainer=ddp", "trainer.accelerator=cpu", *words]).trainer
    )


@pytest.mark.parametrize(
    ("devices", "count"),
    [("1", 0), ("2", 2), ("[0, 1, 3]", 3), ("[1]", 0), ("auto", 0), ("-1", 0), ("'0,1'", 2), ("'4'", 4)],
)
def test_one_process_per_device(trainer, devices, count):
    assert ranks_to_start(trainer(f"trainer.devices={devices}")) == count


@pytest.mark.parametrize("started", [TORCHRUN, {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}])
def test_a_process_that_is_a_rank_starts_none(trainer, monkeypatch, started):
    section = trainer("trainer.devices=2", "trainer.num_nodes=1")
    for name, value in started.items():
        monkeypatch.setenv(name, value)
    assert ranks_to_start(section) == 0


def test_several_machines_must_be_started_from_outside(trainer):
    with pytest.raises(ConfigError, match="num_nodes=2: start it on every node, by torchrun or srun"):
        ranks_to_start(trainer("trainer.devices=2", "trainer.num_nodes=2"))


def test_as_many_processes_as_devices(trainer, monkeypatch):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes were started, but trainer.devices=1 x trainer.num_nodes=1"):
        ranks_to_start(trainer("trainer.devices=1"))


@pytest.mark.parametrize(
    ("left", "said"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, "but not LOCAL_RANK, MASTER_ADDR, MASTER_PORT: unset them"),
        ({"RANK": "0", "WORLD_SIZE": ""}, "WORLD_SIZE is ''"),
        (TORCHRUN | {"RANK": "2"}, "RANK is 2: expected a whole number of at least 0 and at most 1"),
        (TORCHRUN | {"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'"),
        ({"SLURM_STEP_NUM_TASKS": "x"}, "SLURM_STEP_NUM_TASKS is 'x'"),
    ],
)
def test_what_a_launcher_cannot_have_put_into_the_environment_is_named(trainer, monkeypatch, left, said):
    section = trainer("trainer.devices=2")
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in left.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=re.escape(said)):
        ranks_to_start(section)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.devices=3"], "global_batch_size=4 is not divisible by 3 devices"),
        (["trainer.devices=0"], "trainer.devices=0: expected at least one"),
        (["trainer.devices=2", "trainer.num_nodes=0"], "trainer.num_nodes is 0"),
        (["trainer.devices=2", "threads=100000"], "threads is 100000"),
    ],
)
def test_what_no_rank_could_train_is_refused_before_one_is_started(tmp_path, capsys, words, said):
    ddp = ("experiment=tiny", "trainer=ddp", "trainer.accelerator=cpu", f"paths.runs={tmp_path}")
    assert main(["train", *ddp, *words]) == 2
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_alone_variables_of_slurm_and_torchrun_are_someone_elses(tmp_path, monkeypatch):
    """Such as in a job of several tasks, where the command is called without srun."""
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    assert make_trainer(compose("train", ["experiment=tiny"]), RunFolder(tmp_path)).world_size == 1


def test_whoever_waits_for_other_ranks_says_so_and_names_where(monkeypatch, capsys):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "SECONDS_OF_SILENCE", 0.01)
    said = "rank 0 cannot meet the others of 2 at localhost:29500: taken$"
    with pytest.raises(LostRankError, match=said), ranks.patience(2):
        time.sleep(0.2)
        raise torch.distributed.DistNetworkError("taken\nat 0x7f")
    assert "rank 0 is waiting for the others of 2 at localhost:29500" in capsys.readouterr().err


def test_a_signal_ends_at_once_what_waits_where_python_handles_none():
    with StopSignals("runs/x") as signals:
        ours = signal.getsignal(signal.SIGINT)
        with signals.ending_at_once():
            assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGINT) == signal.getsignal(signal.SIGTERM) == ours


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


def test_a_rank_whose_launcher_was_killed_before_it_began_ends_at_once(tmp_path):
    launcher = subprocess.Popen(["true"])
    launcher.wait()
    write_json(tmp_path / "job.json", {"words": [], "launcher": launcher.pid})
    env = {**os.environ, "RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    words = [sys.executable, "-m", "sdscratch.commands.rank", str(tmp_path)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (1, "")  # it has not even looked for the configuration


def test_ranks_that_end_before_there_is_a_folder_leave_none(tmp_path):
    """And their own reason stands: a lock that cannot be made there is no news."""
    _note_end(RunFolder(tmp_path / "none"), ConfigError("resume_from=yes is unknown"))
    assert not (tmp_path / "none").exists()

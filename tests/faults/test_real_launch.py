"""Real launches: one command starts several processes by torchrun, and ends as they do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from harness import LONG, wait_until
from tiny import SMALLER

from sdscratch.run_folder import RunFolder


def start(verb: str, *words: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "sdscratch", verb, *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


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
    wait_until(lambda: len(run.read_metrics()) >= 3)
    assert len(ranks_of(process)) == 2
    process.send_signal(signal.SIGINT)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "deprecated" not in said, said
    assert time.monotonic() - begin < (5 if LONG else 30)  # the short form: on machines that do other things too
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


def test_a_run_whose_reader_is_gone_stops_with_a_checkpoint_like_any_other(tmp_path, tiny_data):
    """As in `sdscratch train ... | tee log`, where Ctrl-C ends tee as well."""
    places = (f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "threads=1")
    process = start("train", "experiment=tiny", *places, *SMALLER, "max_steps=100000", "callbacks.progress.every=1")
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: len(run.read_metrics()) >= 3)
    process.stdout.close()
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    assert run.state()["status"] == "stopped"
    assert run.newest_intact_checkpoint().step == run.state()["step"]


@pytest.mark.skipif(not LONG, reason="half a minute; test_ddp.py has it without the launcher")
def test_a_rank_that_dies_ends_the_command_with_exit_code_1_and_one_line(tmp_path, tiny_data):
    places = (f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "threads=1")
    devices = ("trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    run = RunFolder(tmp_path / "tiny")
    process = start("train", "experiment=tiny", *places, *devices, *SMALLER, "max_steps=100000")
    wait_until(lambda: len(run.read_metrics()) >= 1)
    os.kill(ranks_of(process)[1], signal.SIGKILL)
    begin = time.monotonic()
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - begin < 5, said
    lines = [line for line in said.splitlines() if not line.startswith((str(run.path), "LatentDiffusion: step"))]
    assert len(lines) == 1 and "was killed by SIGKILL: `sdscratch resume" in lines[0]
    assert run.state()["status"] == "failed"

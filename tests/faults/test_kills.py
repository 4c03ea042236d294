"""kill -9 at any moment costs time and nothing else: the run that goes on is the run that was never killed, bit for bit."""

from __future__ import annotations

import os
import signal
from random import Random

import pytest
from harness import LONG, ForkServer, assert_same_run, rows, wait_until

from sdscratch.run_folder import RunFolder

KILLS = 100 if LONG else 30
STEPS = 24
RUN = (
    f"max_steps={STEPS}",
    "dataset.num_workers=2",
    "trainer.accumulate_grad_batches=2",
    "callbacks.validation={_target_: sdscratch.training.Validation, every: 8}",
    "callbacks.checkpoints={every: 2, keep_last: 2, keep_every: 10}",
)
SHORT = (*RUN, "max_steps=8", "callbacks.validation=null")


@pytest.fixture
def reference(finished):
    """The run that was never killed."""
    return finished(*RUN)


def killed_until_done(
    server: ForkServer, words: list[str], run: RunFolder, times: Random, longest: float, most: int
) -> int:
    """Train to the end, killed after random times, at most so often. Returns how often."""
    for kills in range(most + 1):
        command = ["resume", str(run.path)] if run.recipe_file.exists() and times.random() < 0.8 else words
        kill_after = times.uniform(0.3, 1) * longest if kills < most else None
        attempt = server.attempt(command, kill_after=kill_after)
        if not attempt.killed:
            break
    assert attempt.rc == 0, attempt.output
    return kills


@pytest.mark.parametrize("seed", range(3 if LONG else 1))
def test_killed_at_random_times_and_resumed_no_row_and_no_bit_differs(server, train_words, reference, tmp_path, seed):
    times, kills, number, longest = Random(seed), 0, 0, 0.7 * reference.seconds
    while kills < KILLS:
        number += 1
        words = train_words(tmp_path, *RUN, f"name=run{number}", "resume_from=auto")
        run = RunFolder(tmp_path / f"run{number}")
        killed = killed_until_done(server, words, run, times, longest, KILLS - kills)
        kills, longest = kills + killed, longest / (1 if killed else 2)  # the machine was busier when the reference ran
        assert_same_run(run, reference.run)
    print(f"seed {seed}: {kills} kills in {number} runs, 0 rows and 0 bits differ")


def test_without_their_parent_loader_workers_vanish_and_the_folder_is_free(server, train_words, tmp_path):
    running = server.start(train_words(tmp_path, *RUN, "max_steps=100000"))
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: len(run.read_metrics()) >= 3)
    assert len(running.group()) == 3
    running.kill(whom="parent")
    assert running.wait().rc == -signal.SIGKILL
    run.lock()  # held by nobody, whether or not workers still are
    run.unlock()
    wait_until(lambda: running.group() == [], 30)


def test_a_killed_loader_worker_ends_the_run_in_one_line_and_costs_nothing(server, train_words, finished, tmp_path):
    """As the system kills one when memory runs out; torch notices it anywhere between two batches."""
    run = RunFolder(tmp_path / "tiny")
    running = server.start(train_words(tmp_path, *RUN, "max_steps=100000"))
    wait_until(lambda: bool(run.checkpoints()) and len(running.group()) == 3)
    worker = next(pid for pid in running.group() if pid != running.pid)
    os.kill(worker, signal.SIGKILL)
    attempt = running.wait()
    assert attempt.rc == 1 and "Traceback" not in attempt.output, attempt.output
    said = attempt.output.splitlines()[-1]
    assert said.startswith(f"sdscratch: process {worker}, one of 2 that read the data, ")
    assert "lower dataset.num_workers" in said and f"`sdscratch resume {run.path}`" in said
    assert run.state()["status"] == "failed"
    step = run.newest_intact_checkpoint().step
    attempt = server.attempt(["resume", str(run.path), f"max_steps={step + 2}", "dataset.num_workers=0"])
    assert attempt.rc == 0, attempt.output


@pytest.fixture(scope="module")
def killed_once(server, train_words, tmp_path_factory) -> RunFolder:
    """A run whose process ended without a word after its first save."""
    runs = tmp_path_factory.mktemp("killed")
    assert server.attempt(train_words(runs, *SHORT), env={"SDS_CRASH_AT": "save:sidecar"}).rc == 9
    run = RunFolder(runs / "tiny")
    assert rows(run)[-1]["step"] < 8
    return run


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_a_killed_run_goes_on_with_any_number_of_workers(server, finished, killed_once, copied, workers):
    run = copied(killed_once)
    attempt = server.attempt(["resume", str(run.path), f"dataset.num_workers={workers}"])
    assert attempt.rc == 0, attempt.output
    assert_same_run(run, finished(*SHORT).run)


def test_a_run_that_lives_for_two_steps_at_a_time_arrives_all_the_same(server, train_words, finished, tmp_path):
    """The first steps after a resume are where others go wrong: a save in the middle of an accumulation, a batch too many."""
    words, run = train_words(tmp_path, *SHORT, "resume_from=auto"), RunFolder(tmp_path / "tiny")
    for step in (2, 4, 6, 8):
        assert server.attempt(words, env={"SDS_CRASH_AT": "save:sidecar"}).rc == 9
        assert run.checkpoints()[-1].step == step
    attempt = server.attempt(words)
    assert attempt.rc == 0, attempt.output
    assert_same_run(run, finished(*SHORT).run)

"""kill -9 at any moment costs time and nothing else: the run that goes on is the run that was never killed, bit for bit."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from harness import LONG, ForkServer, differing_rows, rows, state_hashes, wait_until

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


class Reference(NamedTuple):
    """The run that was never killed, and how long it took."""

    run: RunFolder
    seconds: float


@pytest.fixture(scope="module")
def reference(server: ForkServer, train_words, tmp_path_factory) -> Reference:
    runs = tmp_path_factory.mktemp("reference")
    attempt = server.attempt(train_words(runs, *RUN))
    assert attempt.rc == 0, attempt.output
    return Reference(RunFolder(runs / "tiny"), attempt.seconds)


def assert_same_run(run: RunFolder, reference: RunFolder) -> None:
    """Every loss row, the weights, their average, the optimizer and the checkpoints that are kept."""
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))
    assert differing_rows(run, reference) == 0
    assert state_hashes(run) == state_hashes(reference)
    assert [c.step for c in run.checkpoints()] == [c.step for c in reference.checkpoints()]
    assert len(list(run.checkpoint_folder.iterdir())) == 2 * len(run.checkpoints())


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
    times, kills, number = Random(seed), 0, 0
    while kills < KILLS:
        number += 1
        words = train_words(tmp_path, *RUN, f"name=run{number}", "resume_from=auto")
        run = RunFolder(tmp_path / f"run{number}")
        kills += killed_until_done(server, words, run, times, 0.7 * reference.seconds, KILLS - kills)
        assert_same_run(run, reference.run)


def test_without_their_parent_loader_workers_vanish_and_the_folder_is_free(server, train_words, tmp_path):
    running = server.start(train_words(tmp_path, *RUN, "max_steps=100000"))
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: len(run.read_metrics()) >= 3, 60)
    assert len(running.group()) == 3
    running.kill(whom="parent")
    assert running.wait().rc == -signal.SIGKILL
    run.lock()  # held by nobody, whether or not workers still are
    run.unlock()
    wait_until(lambda: running.group() == [], 30)


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_a_killed_run_goes_on_with_any_number_of_workers(
    server, train_words, reference, killed_once, tmp_path, workers
):
    run = RunFolder(tmp_path / "tiny")
    shutil.copytree(killed_once, run.path)
    attempt = server.attempt(["resume", str(run.path), f"dataset.num_workers={workers}"])
    assert attempt.rc == 0, attempt.output
    assert_same_run(run, reference.run)


@pytest.fixture(scope="module")
def killed_once(server, train_words, tmp_path_factory) -> Path:
    """A run whose process, but not its workers, was killed between two steps."""
    runs = tmp_path_factory.mktemp("killed")
    run = RunFolder(runs / "tiny")
    running = server.start(train_words(runs, *RUN))
    wait_until(lambda: len(run.checkpoints()) >= 2, 60)
    running.kill(whom="parent")
    assert running.wait().rc == -signal.SIGKILL
    assert rows(run)[-1]["step"] < STEPS
    return run.path

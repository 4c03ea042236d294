"""Told to stop, a run stops at the next step boundary with a checkpoint, on all ranks, and goes on as if it had not."""

from __future__ import annotations

import signal
import time
from random import Random
from typing import Any

import pytest
from harness import LONG, ForkServer, differing_rows, state_hashes, wait_until
from ranks import Job

from sdscratch.run_folder import RunFolder

STOPS = 25 if LONG else 3  # of one process, and as many of two ranks
TWICE = 10 if LONG else 1
SECONDS = 5 if LONG else 30  # the short form runs on machines that do other things too: alone it is one
RUN = (
    "max_steps=16",
    "trainer.accumulate_grad_batches=2",
    "dataset.num_workers=1",
    "callbacks.checkpoints={every: 1000, keep_last: 2}",
    "callbacks.metrics.every=2",
)
ENDLESS = (*RUN, "max_steps=100000")


class Alone:
    """One process, as a job of one rank."""

    def __init__(self, server: ForkServer, words: list[str]) -> None:
        self.ranks = [server.start(words)]

    def kill(self, number: int, rank: int | None = None) -> None:
        self.ranks[0].kill(number, "parent" if rank is not None else "group")

    def ends_within(self, seconds: float) -> bool:
        return self.ranks[0].ends_within(seconds)

    def wait(self) -> list[Any]:
        return [self.ranks[0].wait()]


@pytest.fixture(scope="module", params=[Alone, Job], ids=["one process", "two ranks"])
def kind(request) -> Any:
    return request.param


@pytest.fixture(scope="module")
def reference(server, train_words, kind, tmp_path_factory) -> tuple[RunFolder, float]:
    runs = tmp_path_factory.mktemp("reference")
    attempts = kind(server, train_words(runs, *RUN)).wait()
    assert all(attempt.rc == 0 for attempt in attempts), attempts[0].output
    return RunFolder(runs / "tiny"), attempts[0].seconds


def training(run: RunFolder) -> bool:
    """Whether the first step has been taken: from then on a stop leaves a checkpoint."""
    return len(run.read_metrics()) > 0


def test_stopped_at_random_times_by_a_signal_to_one_rank_or_to_every_process(
    server, train_words, kind, reference, tmp_path
):
    times, stops, number = Random(1), 0, 0
    whole, seconds = reference
    while stops < STOPS:
        number += 1
        run = RunFolder(tmp_path / f"run{number}")
        words = train_words(tmp_path, *RUN, f"name=run{number}", "resume_from=auto")
        while run.state().get("status") != "done":
            job = kind(server, words)
            before = run.state().get("step", 0)
            which = times.choice([signal.SIGTERM, signal.SIGINT])
            wait_until(lambda job=job, run=run: run.state().get("status") == "running" or job.ends_within(0.01))
            if stops < STOPS and not job.ends_within(times.uniform(0, 0.3) * seconds):
                stops += 1
                job.kill(which, times.choice([None, times.randrange(len(job.ranks))]))
                start = time.perf_counter()
                attempts = job.wait()
                assert time.perf_counter() - start < SECONDS
                codes = {attempt.rc for attempt in attempts}
                if run.state()["status"] == "done":  # its last step was behind it
                    assert codes <= {0, 128 + which, -which}
                    continue
                if not any(f"by {which.name} after step" in attempt.output for attempt in attempts):
                    codes -= {1}  # one rank was told between or after the steps, and the other misses it
                assert codes == {128 + which}, [attempt.output for attempt in attempts]
                state = run.state()
                assert state["status"] == "stopped" and state["step"] >= before
                assert run.newest_intact_checkpoint().step == state["step"]
            else:
                assert {attempt.rc for attempt in job.wait()} == {0}
        assert differing_rows(run, whole) == 0
        assert state_hashes(run) == state_hashes(whole)
    print(f"{kind.__name__}: {stops} stops in {number} runs, 0 rows and 0 bits differ")


def test_a_second_signal_ends_it_at_once_and_leaves_no_corrupt_file(server, train_words, kind, tmp_path):
    words = train_words(tmp_path, *ENDLESS, "resume_from=auto", "callbacks.checkpoints.every=4")
    run = RunFolder(tmp_path / "tiny")
    for _ in range(TWICE):
        job = kind(server, words)
        wait_until(lambda job=job: "samples per step" in job.ranks[0].output() and bool(run.checkpoints()))
        job.kill(signal.SIGTERM, 0)
        time.sleep(0.02)  # two of a kind that come together count as one
        job.kill(signal.SIGTERM, 0)
        start = time.perf_counter()
        attempts = job.wait()
        assert time.perf_counter() - start < SECONDS
        assert attempts[0].rc == 143
        assert all(checkpoint.is_intact() for checkpoint in run.checkpoints())
        assert run.newest_intact_checkpoint() is not None
    print(f"{kind.__name__}: {TWICE} times told twice, 0 damaged files")


def test_before_its_first_step_a_run_stops_at_once(server, train_words, tmp_path):
    running = server.start(train_words(tmp_path, *ENDLESS))
    wait_until((tmp_path / "tiny" / ".lock").exists)
    running.kill(signal.SIGTERM, "parent")
    attempt = running.wait()
    assert attempt.rc == 143 and "was stopped by SIGTERM" in attempt.output, attempt.output
    assert RunFolder(tmp_path / "tiny").checkpoints() == []


def test_slurms_early_warning_stops_a_run_like_sigterm(server, train_words, tmp_path):
    running = server.start(train_words(tmp_path, *ENDLESS))
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: training(run))
    running.kill(signal.SIGUSR1, "group")  # sbatch --signal=USR1@90 may reach loader workers too ...
    running.kill(signal.SIGTERM, "parent")  # ... and this is what follows it
    assert running.wait().rc == 143
    assert run.newest_intact_checkpoint().step == run.state()["step"]

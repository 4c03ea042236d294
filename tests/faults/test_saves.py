"""What happens inside a save: the process dies at any of its points, or the disk is full. Old checkpoints are never lost."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from harness import assert_same_run, rows, state_hashes

from sdscratch.run_folder import RunFolder

STEPS = 12
RUN = (f"max_steps={STEPS}", "callbacks.checkpoints={every: 2, keep_last: 2}")
POINTS = {"tmp": 2, "fsync": 2, "rename": 2, "sidecar": 4, "retention": 6}
"""Where a save can be cut short, and the step that the run, which has been at step 2 before, then goes on from."""

TOO_SMALL = 1_000_000
"""Bytes of a file that hold anything but a checkpoint."""


@pytest.fixture(scope="module")
def at_step_2(server, train_words, tmp_path_factory) -> RunFolder:
    """A run that has just finished its first checkpoint."""
    runs = tmp_path_factory.mktemp("early")
    attempt = server.attempt(train_words(runs, *RUN), env={"SDS_CRASH_AT": "save:sidecar"})
    assert attempt.rc == 9
    run = RunFolder(runs / "tiny")
    assert [checkpoint.step for checkpoint in run.checkpoints()] == [2]
    return run


@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_inside_a_save_goes_on_from_what_was_whole(server, finished, at_step_2, copied, point):
    run = copied(at_step_2)
    assert server.attempt(["resume", str(run.path)], env={"SDS_CRASH_AT": f"save:{point}"}).rc == 9
    newest = run.newest_intact_checkpoint()
    assert newest.step == POINTS[point] and newest.load()["global_step"] == newest.step
    attempt = server.attempt(["resume", str(run.path)])
    assert attempt.rc == 0 and f"going on after step {newest.step}" in attempt.output, attempt.output
    assert_same_run(run, finished(*RUN).run)


@pytest.mark.parametrize("point", ["tmp", "rename"])
def test_whoever_dies_inside_the_first_save_starts_again_and_says_so(server, train_words, finished, tmp_path, point):
    words = train_words(tmp_path, *RUN, "resume_from=auto")
    assert server.attempt(words, env={"SDS_CRASH_AT": f"save:{point}"}).rc == 9
    attempt = server.attempt(words)
    assert attempt.rc == 0 and "from the start, for no checkpoint was ever completed" in attempt.output
    assert_same_run(RunFolder(tmp_path / "tiny"), finished(*RUN).run)


def test_whoever_dies_before_the_first_checkpoint_takes_the_same_first_weights_again(
    server, train_words, finished, tmp_path
):
    init = (*RUN, f"init_from={finished(*RUN).run.path}", "init.optimizer=keep")
    words = train_words(tmp_path, *init)
    assert server.attempt(words, env={"SDS_CRASH_AT": "save:tmp"}).rc == 9
    run = RunFolder(tmp_path / "tiny")
    assert server.attempt(["resume", str(run.path)]).rc == 0
    assert_same_run(run, finished(*init).run)
    assert run.lineage() == finished(*init).run.lineage()


@pytest.mark.parametrize("point", ["tmp", "rename"])
def test_whoever_dies_inside_a_snapshot_of_the_averages_writes_the_same_one_again(
    server, train_words, finished, tmp_path, point
):
    tracked = (*RUN, "callbacks=posthoc_ema", "callbacks.posthoc_ema.every=6", "callbacks.checkpoints.every=8")
    words = train_words(tmp_path, *tracked, "resume_from=auto")
    assert server.attempt(words, env={"SDS_CRASH_AT": f"save:{point}"}).rc == 9
    assert server.attempt(words).rc == 0
    run, reference = RunFolder(tmp_path / "tiny"), finished(*tracked).run
    assert_same_run(run, reference)
    snapshots = [{p.name: p.read_bytes() for p in (r.path / "posthoc_ema").iterdir()} for r in (run, reference)]
    assert snapshots[0] == snapshots[1] and len(snapshots[0]) == 4


# The disk is full


def test_three_failed_saves_in_a_row_end_the_run_and_cost_nothing_that_was_there(server, finished, at_step_2, copied):
    run = copied(at_step_2)
    attempt = server.attempt(["resume", str(run.path)], limits={"RLIMIT_FSIZE": TOO_SMALL})
    assert attempt.rc == 4
    complaints = [line for line in attempt.output.splitlines() if "cannot write" in line]
    assert [line.split(":")[0] for line in complaints] == ["warning", "warning", "sdscratch"]
    assert "step 4 is not saved" in complaints[0] and "failure 2 of 3 in a row" in complaints[1]
    assert "Traceback" not in attempt.output and run.state()["status"] == "failed"
    assert rows(run)[-1]["step"] == 8  # it trained on in the meantime
    assert sorted(path.name for path in run.checkpoint_folder.iterdir()) == [
        "step_00000002.ckpt",
        "step_00000002.ckpt.json",
    ]
    assert run.newest_intact_checkpoint().step == 2
    assert server.attempt(["resume", str(run.path)]).rc == 0
    assert_same_run(run, finished(*RUN).run)


def test_two_failed_saves_in_a_row_are_survived_any_number_of_times(server, finished, at_step_2, copied):
    run = copied(at_step_2)
    for step in (4, 6, 10):
        run.checkpoint_path(step).mkdir()  # no file can take this name
    attempt = server.attempt(["resume", str(run.path)])
    assert attempt.rc == 0, attempt.output
    for step in (4, 6, 10):
        assert f"warning: step {step} is not saved: cannot write" in attempt.output
    assert attempt.output.count("not saved") == 3
    assert rows(run) == rows(finished(*RUN).run)
    assert state_hashes(run) == state_hashes(finished(*RUN).run)


def test_a_run_whose_last_step_cannot_be_saved_is_not_done(server, at_step_2, copied):
    run = copied(at_step_2)
    run.checkpoint_path(STEPS).mkdir()
    assert server.attempt(["resume", str(run.path)]).rc == 4
    assert run.state()["status"] == "failed" and run.newest_intact_checkpoint().step == STEPS - 2


# The folder is not ours

OTHER_USER = 65534 if os.geteuid() == 0 else None
"""Root may write anywhere."""


@pytest.fixture
def readable():
    """A folder that every user can read, and none but its owner write."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)
        for path in [Path(name), *Path(name).rglob("*")]:
            if path.is_dir():
                path.chmod(0o755)


def test_a_folder_that_cannot_be_written_is_found_before_the_first_step(server, train_words, readable):
    readable.chmod(0o555)
    attempt = server.attempt(train_words(readable / "runs"), uid=OTHER_USER)
    assert attempt.rc == 4 and attempt.output.startswith(f"sdscratch: cannot write into {readable}/runs")
    assert len(attempt.output.splitlines()) == 1 and not list(readable.iterdir())


def test_a_run_that_may_only_be_read_is_not_resumed(server, at_step_2, readable):
    run = RunFolder(shutil.copytree(at_step_2.path, readable / "tiny"))
    before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    run.checkpoint_folder.chmod(0o555)
    attempt = server.attempt(["resume", str(run.path)], uid=OTHER_USER)
    assert attempt.rc == 4 and attempt.output.startswith(f"sdscratch: cannot write into {run.path}")
    assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before

"""Bits flip and files are cut short: no damaged checkpoint is ever loaded, and no run ever starts again in silence."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
from harness import LONG, assert_same_run

from sdscratch.run_folder import RunFolder

RUN = ("max_steps=6", "callbacks.checkpoints={every: 2, keep_last: 3}")
FLIPS, TRUNCATIONS = (1000, 200) if not LONG else (5000, 1000)


@pytest.fixture(scope="module")
def run(finished) -> RunFolder:
    """A finished run with checkpoints of steps 2, 4 and 6."""
    return finished(*RUN).run


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([value ^ (1 << bit)]))


def flip_in_the_middle(run: RunFolder, step: int) -> None:
    flip(run.checkpoint_path(step), run.checkpoint_path(step).stat().st_size // 2, 3)


def side_car(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def assert_falls_back(run: RunFolder, damaged: Path, original: dict[int, str], capsys) -> None:
    """What is chosen is, by its own hash, what was once written; and never the damaged file."""
    found = run.newest_intact_checkpoint()
    warning = capsys.readouterr().err
    assert found.sha256 == original[found.step]
    if damaged.suffix == ".ckpt":
        assert found.step == 4 and f"warning: {damaged} is damaged" in warning


@pytest.fixture
def damageable(run, copied) -> tuple[RunFolder, Path, dict[int, str]]:
    copy = copied(run)
    return copy, copy.checkpoint_path(6), {checkpoint.step: checkpoint.sha256 for checkpoint in copy.checkpoints()}


def test_no_flipped_bit_is_ever_loaded(damageable, capsys):
    run, newest, original = damageable
    random = Random(0)
    for number in range(FLIPS):
        path = side_car(newest) if number % 10 == 0 else newest
        byte, bit = random.randrange(path.stat().st_size), random.randrange(8)
        flip(path, byte, bit)
        assert_falls_back(run, path, original, capsys)
        flip(path, byte, bit)
    assert run.newest_intact_checkpoint().step == 6
    print(f"{FLIPS} flipped bits, 0 of them loaded")


def test_no_truncated_checkpoint_is_ever_loaded(damageable, capsys):
    run, newest, original = damageable
    random = Random(0)
    for number in range(TRUNCATIONS):
        path = side_car(newest) if number % 4 == 0 else newest
        content = path.read_bytes()
        length = 0 if number < 8 else random.randrange(len(content))
        os.truncate(path, length)
        assert_falls_back(run, path, original, capsys)
        path.write_bytes(content)
    assert run.newest_intact_checkpoint().step == 6
    print(f"{TRUNCATIONS} truncations, 0 of them loaded")


def test_a_resumed_run_falls_back_with_a_warning_to_the_same_bits(server, run, copied):
    copy = copied(run)
    copy.set_state(status="running")
    flip_in_the_middle(copy, 6)
    os.truncate(copy.checkpoint_path(4), 1000)
    attempt = server.attempt(["resume", str(copy.path)])
    assert attempt.rc == 0 and "going on after step 2" in attempt.output
    assert [line.split(":")[0] for line in attempt.output.splitlines() if "is damaged" in line] == ["warning"] * 2
    assert_same_run(copy, run)


def files_of(run: RunFolder) -> dict[Path, bytes]:
    """All but the lock's, which says who held it last."""
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}


@pytest.mark.parametrize("state", ["running", "gone"])
def test_where_all_are_damaged_the_run_stops_and_is_left_as_it_is(server, train_words, run, copied, state):
    copy = copied(run)
    copy.set_state(status="running")
    if state == "gone":
        (copy.path / "state.json").unlink()
    for step in (2, 4, 6):
        flip_in_the_middle(copy, step)
    before = files_of(copy)
    for words in (["resume", str(copy.path)], train_words(copy.path.parent, *RUN, "resume_from=auto")):
        attempt = server.attempt(words)
        assert attempt.rc == 2 and "Traceback" not in attempt.output
        assert "holds no intact checkpoint, but the run has been at step 6" in attempt.output.splitlines()[-1]
    assert files_of(copy) == before


def test_a_run_that_never_was_starts_and_says_so_and_a_finished_one_is_left_alone(server, train_words, run, tmp_path):
    words = train_words(tmp_path, *RUN, "resume_from=auto")
    attempt = server.attempt(words)
    assert attempt.rc == 0 and "tiny: from the start; " in attempt.output
    again = RunFolder(tmp_path / "tiny")
    assert_same_run(again, run)
    before = {path: path.stat().st_mtime_ns for path in again.path.rglob("*")}
    for command in (words, ["resume", str(again.path)]):
        attempt = server.attempt(command)
        assert attempt.rc == 0 and attempt.output.startswith(f"{again.path} is finished: nothing to do\n")
    assert {path: path.stat().st_mtime_ns for path in again.path.rglob("*")} == before

"""`sdscratch checkpoints`: what it says of a run's checkpoints, and what it removes."""

from __future__ import annotations

import sys
from subprocess import PIPE, Popen

import pytest

from sdscratch.checkpoint_file import Checkpoint, Retention
from sdscratch.cli import main
from sdscratch.run_folder import RunFolder


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """Five checkpoints, the second of which is the best."""
    run = RunFolder(tmp_path / "runs" / "try1")
    run.create()
    for step, loss in {10: 3.0, 20: 1.25, 30: None, 40: 1.5, 50: None}.items():
        run.write_checkpoint({"step": step, "weights": b"x" * 5000}, step, 4 * step, loss)
    run.set_state(status="stopped", step=50)
    return run


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def flip(run: RunFolder, step: int) -> None:
    content = bytearray(run.checkpoint_path(step).read_bytes())
    content[2000] ^= 4
    run.checkpoint_path(step).write_bytes(content)


def said(capsys, run: RunFolder, *words: str, exit_code: int = 0) -> tuple[list[str], str]:
    """The lines of stdout, and stderr."""
    assert main(["checkpoints", str(run.path), *words]) == exit_code
    streams = capsys.readouterr()
    assert "Traceback" not in streams.err
    return streams.out.splitlines(), streams.err


def test_the_list_has_a_line_for_each_with_its_numbers_and_marks_the_best(run, capsys):
    lines, _ = said(capsys, run)
    assert lines[0].split() == ["step", "samples", "size", "val", "loss"]
    size = run.checkpoint_path(20).stat().st_size / 1000
    assert lines[2].split() == ["20", "80", f"{size:.1f}", "kB", "1.25", "complete", "best"]
    assert lines[3].split() == ["30", "120", f"{size:.1f}", "kB", "-", "complete"]
    assert len(lines) == 7 and sum("best" in line for line in lines) == 1


def test_a_missing_tail_and_a_save_that_was_never_finished_are_seen_without_reading(run, capsys):
    run.checkpoint_path(40).write_bytes(b"half")
    run.checkpoint_path(60).write_bytes(b"whole, but without side-car")
    lines, _ = said(capsys, run)
    assert lines[4].split()[-1] == "damaged"
    assert lines[6].startswith("step_00000060.ckpt: not valid")


def test_verifying_reads_every_byte(run, capsys):
    lines, _ = said(capsys, run, "verify")
    assert [line.split()[5] for line in lines[1:]] == ["intact"] * 5
    flip(run, 30)
    lines, error = said(capsys, run, "verify", exit_code=2)
    assert lines[3].split()[-1] == "damaged"
    assert error == f"sdscratch: 1 of 5 checkpoints in {run.path} are damaged: step_00000030.ckpt\n"


def test_a_run_that_goes_on_while_it_is_verified_has_no_damaged_checkpoints(run, capsys, monkeypatch):
    is_intact = Checkpoint.is_intact

    def going_on(checkpoint: Checkpoint) -> bool:
        if checkpoint.step == 20:
            run.write_checkpoint({"step": 60}, 60, 240)
            run.prune_checkpoints(60, Retention(last=2))  # 20, the best, stays
            run.checkpoint_path(70).write_bytes(b"being saved")
        return is_intact(checkpoint)

    run.lock()
    run.set_state(status="running")
    monkeypatch.setattr(Checkpoint, "is_intact", going_on)
    lines, error = said(capsys, run, "verify")
    run.unlock()
    assert [line.split()[0] for line in lines[1:]] == ["10", "20", "50"] and not error


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ([], [20, 40, 50]),
        (["keep_last=1"], [20, 50]),
        (["keep_last=1", "keep_best=0"], [50]),
        (["keep_best=2", "keep_last=1"], [20, 40, 50]),
        (["keep_every=30"], [20, 30, 40, 50]),
    ],
)
def test_pruning_keeps_what_is_asked_for(run, capsys, words, kept):
    lines, _ = said(capsys, run, "prune", *words)
    assert steps(run) == kept
    assert lines[-1].startswith(f"{5 - len(kept)} removed, ") and lines[-1].endswith(f" {len(kept)} kept")
    assert len(list(run.checkpoint_folder.iterdir())) == 2 * len(kept)


def test_pruning_goes_by_the_configuration_of_the_run(run, capsys):
    run.config_file.write_text("callbacks: {checkpoints: {every: 10, keep_last: 3, keep_every: 10, keep_best: 0}}")
    said(capsys, run, "prune", "keep_every=null")
    assert steps(run) == [30, 40, 50]


def test_pruning_does_not_count_on_a_damaged_checkpoint(run, capsys):
    flip(run, 50)
    _, warning = said(capsys, run, "prune", "keep_last=1", "keep_best=0")
    assert "step_00000050.ckpt is damaged" in warning
    assert steps(run) == [40] and run.newest_intact_checkpoint().step == 40


def test_pruning_removes_nothing_where_none_is_intact(run, capsys):
    for step in steps(run):
        flip(run, step)
    _, error = said(capsys, run, "prune", "keep_last=1", exit_code=2)
    assert "holds no intact checkpoint" in error and len(steps(run)) == 5


TRAINING = """
import sys
from sdscratch.run_folder import RunFolder
run = RunFolder(sys.argv[1])
run.lock()
print("locked", flush=True)
input()
"""


def test_a_run_that_trains_is_not_pruned(run, capsys):
    with Popen([sys.executable, "-c", TRAINING, str(run.path)], stdin=PIPE, stdout=PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline()
        _, error = said(capsys, run, "prune", exit_code=2)
        other.communicate("\n")
    assert f"in use by process {other.pid}" in error and len(steps(run)) == 5


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verfy"], "did you mean 'verify'"),
        (["verify", "twice"], "takes nothing more"),
        (["prune", "keep_lst=1"], "did you mean 'keep_last'"),
        (["prune", "keep_last"], "prune takes keep_last=N"),
        (["prune", "keep_last=0"], "keep_last is 0"),
        (["prune", "keep_last=x"], "keep_last is 'x'"),
    ],
)
def test_what_cannot_be_meant_is_refused(run, capsys, words, message):
    _, error = said(capsys, run, *words, exit_code=2)
    assert message in error and len(steps(run)) == 5


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    assert main(["checkpoints", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err and not list(tmp_path.iterdir())

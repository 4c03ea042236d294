"""The folder of a run: what is written there is whole, found again, and believed only when it is intact."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import files_of_at_most

from sdscratch.checkpoint_file import Checkpoint, Retention, best_first
from sdscratch.errors import CannotWriteError, RunFolderError
from sdscratch.run_folder import RunFolder, runs_below


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "runs" / "try1")
    folder.create()
    return folder


def save(run: RunFolder, *steps: int) -> None:
    for step in steps:
        run.write_checkpoint({"step": step, "weights": torch.full((100,), float(step))}, step, 4 * step)


def steps(run: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in run.checkpoints()]


def in_another_process(code: str, run: RunFolder) -> subprocess.Popen:
    words = [
        sys.executable,
        "-c",
        f"import os, time\nfrom sdscratch.run_folder import RunFolder\n{code}",
        str(run.path),
    ]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


LOCK = "import sys; run = RunFolder(sys.argv[1]); run.lock(); print(os.getpid(), flush=True)"

# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit_with_what_its_side_car_says(run):
    save(run, 1000)
    checkpoint = run.newest_intact_checkpoint()
    assert checkpoint.path.name == "step_00001000.ckpt"
    assert (checkpoint.step, checkpoint.samples_seen) == (1000, 4000)
    assert torch.equal(checkpoint.load()["weights"], torch.full((100,), 1000.0))
    about = json.loads((run.checkpoint_folder / "step_00001000.ckpt.json").read_text())
    assert about.keys() == {"step", "samples_seen", "sha256", "size", "val_loss"}


def test_a_checkpoint_that_would_run_code_is_refused(run, tmp_path):
    class Payload:
        def __reduce__(self):
            return Path.touch, (tmp_path / "canary",)

    run.write_checkpoint({"a": Payload()}, 1, 4)
    with pytest.raises(RunFolderError, match="more than tensors and plain values.*would call "):
        run.newest_intact_checkpoint().load()
    assert not (tmp_path / "canary").exists()


def test_where_no_checkpoint_was_ever_finished_there_is_none(run):
    assert run.newest_intact_checkpoint() is None
    run.set_state(status="running")
    run.checkpoint_path(10).write_bytes(b"the first save was killed before its side-car")
    assert run.newest_intact_checkpoint() is None


def truncate(checkpoint: Path) -> None:
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: len(content) * 3 // 4])


def empty(checkpoint: Path) -> None:
    checkpoint.write_bytes(b"")


def flip(checkpoint: Path) -> None:
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)


def delete(checkpoint: Path) -> None:
    checkpoint.unlink()


def delete_side_car(checkpoint: Path) -> None:
    side_car(checkpoint).unlink()


def truncate_side_car(checkpoint: Path) -> None:
    truncate(side_car(checkpoint))


def empty_side_car(checkpoint: Path) -> None:
    side_car(checkpoint).write_text("[]")


def misname_step(checkpoint: Path) -> None:
    about = json.loads(side_car(checkpoint).read_text())
    side_car(checkpoint).write_text(json.dumps({**about, "step": about["step"] + 64}))


def misstate_numbers(checkpoint: Path) -> None:
    about = json.loads(side_car(checkpoint).read_text())
    side_car(checkpoint).write_text(json.dumps(about | {"samples_seen": None, "val_loss": "low"}))


def side_car(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + ".json")


DAMAGES = [
    truncate,
    empty,
    flip,
    delete,
    delete_side_car,
    truncate_side_car,
    empty_side_car,
    misname_step,
    misstate_numbers,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_of_damaged_checkpoints_none_is_believed(run, damage: Callable[[Path], None]):
    save(run, 10, 20, 30)
    run.set_state(step=30)
    damage(run.checkpoint_path(30))
    assert run.newest_intact_checkpoint().step == 20
    damage(run.checkpoint_path(20))
    assert run.newest_intact_checkpoint().step == 10
    damage(run.checkpoint_path(10))
    with pytest.raises(RunFolderError, match="step 30.*Put one back, or start again"):
        run.newest_intact_checkpoint()


def test_whoever_looks_for_the_newest_while_a_run_goes_on_finds_it_and_calls_none_damaged(run, capsys, monkeypatch):
    save(run, 10, 20)
    is_intact = Checkpoint.is_intact

    def going_on(checkpoint: Checkpoint) -> bool:
        monkeypatch.undo()
        save(run, 30, 40)
        run.prune_checkpoints(40, Retention(last=2))
        return is_intact(checkpoint)

    monkeypatch.setattr(Checkpoint, "is_intact", going_on)
    assert run.newest_intact_checkpoint().step == 40 and capsys.readouterr().err == ""


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_flipped_bit_of_a_checkpoint_or_its_side_car_changes_what_is_loaded(run, data):
    if not steps(run):
        save(run, 10, 20)
    path = data.draw(st.sampled_from([run.checkpoint_path(20), side_car(run.checkpoint_path(20))]))
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        found = run.newest_intact_checkpoint()
        assert found.load()["step"] == found.step
        assert found.step == 10 or path.suffix == ".json"  # samples_seen may differ: nothing depends on it
    finally:
        path.write_bytes(content)


def test_until_a_checkpoint_written_anew_is_whole_the_old_one_counts(run):
    save(run, 10, 20)
    old = run.newest_intact_checkpoint()

    class Content(dict):
        def __reduce__(self):
            assert run.newest_intact_checkpoint() == old
            return dict, ()

    new = run.write_checkpoint({"a": Content()}, 20, 80)
    assert run.newest_intact_checkpoint() == new != old


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(1, None, 0), [50]),
        (Retention(2, None, 0), [40, 50]),
        (Retention(3, None, 0), [30, 40, 50]),
        (Retention(9, None, 0), [10, 20, 30, 40, 50]),
        (Retention(1, 20, 0), [20, 40, 50]),
        (Retention(1, None, 1), [20, 50]),
        (Retention(1, None, 2), [20, 30, 50]),
        (Retention(2, 10, 1), [10, 20, 30, 40, 50]),
    ],
)
def test_the_newest_checkpoints_the_milestones_and_the_best_are_kept(run, retention, kept):
    losses = {10: 3.0, 20: 1.0, 30: 1.5, 40: None, 50: 2.0}
    for step, loss in losses.items():
        run.write_checkpoint({"step": step}, step, 4 * step, loss)
        RunFolder(run.path).prune_checkpoints(step, retention)  # an object that remembers nothing, as after a kill
    assert steps(run) == kept
    assert len(list(run.checkpoint_folder.iterdir())) == 2 * len(kept)


def test_of_equally_good_checkpoints_the_newer_is_the_best(run):
    for step in (10, 20, 30):
        run.write_checkpoint({"step": step}, step, 4 * step, 1.0 if step < 30 else None)
    assert [c.step for c in best_first(run.checkpoints())] == [20, 10]


def test_there_is_nothing_to_prune_before_the_first_folder(tmp_path):
    assert RunFolder(tmp_path / "none").prune_checkpoints(0, Retention()) == []


def test_pruning_removes_what_crashes_have_left_and_nothing_that_is_not_ours(run):
    save(run, 10, 20)
    left = [
        "step_00000015.ckpt",
        ".step_00000020.ckpt.123.tmp",
        ".step_00000020.ckpt.json.7.tmp",
        "step_00000005.ckpt.json",
    ]
    for name in [*left, "best.ckpt", "notes.txt"]:
        (run.checkpoint_folder / name).write_bytes(b"")
    assert len(run.prune_checkpoints(20, Retention())) == len(left)
    assert steps(run) == [10, 20]
    assert not any((run.checkpoint_folder / name).exists() for name in left)
    assert (run.checkpoint_folder / "best.ckpt").exists()
    assert (run.checkpoint_folder / "notes.txt").exists()


def test_damaged_checkpoints_of_an_abandoned_future_do_not_push_out_good_ones(run):
    save(run, 10, 20, 30, 40)
    for step in (30, 40):
        flip(run.checkpoint_path(step))
    assert run.newest_intact_checkpoint().step == 20
    save(run, 25)
    run.prune_checkpoints(25, Retention())
    assert steps(run) == [20, 25]


def unreadable(path: Path) -> Path:
    """As a file is on a disk that is away: open() fails, and for another reason than that there is none."""
    kept = path.rename(path.with_name(f"kept_{path.name}"))
    path.symlink_to(path.name)
    return kept


@pytest.mark.parametrize("ending", ["", ".json"])
def test_what_cannot_be_read_is_not_damaged_never_pruned_and_never_passed_over_in_silence(run, ending):
    save(run, 10, 20, 30)
    path = run.checkpoint_path(30)
    path = path.with_name(path.name + ending)
    kept = unreadable(path)
    with pytest.raises(RunFolderError, match=rf"{path.name} cannot be read .* not mean that it is damaged"):
        run.newest_intact_checkpoint()
    if ending:
        with pytest.raises(RunFolderError, match="cannot be read"):
            run.prune_checkpoints(20, Retention(last=1))
        assert steps(run) == [10, 20] and run.checkpoint_path(30).exists()
    kept.rename(path)  # the disk is back
    assert run.newest_intact_checkpoint().step == 30


def refusing(monkeypatch, what: str) -> None:
    """Let the system refuse it; the superuser, as whom tests may run, is refused nothing by rights."""

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, what, refuse)


def test_a_checkpoint_folder_that_cannot_be_read_is_not_an_empty_one(run, monkeypatch):
    save(run, 10)
    refusing(monkeypatch, "iterdir")
    for look in (run.checkpoints, run.newest_intact_checkpoint, lambda: run.prune_checkpoints(10, Retention())):
        with pytest.raises(RunFolderError, match="cannot read .*checkpoints: Permission denied"):
            look()


def test_a_checkpoint_that_cannot_be_removed_is_named(run, monkeypatch):
    save(run, 10, 20)
    refusing(monkeypatch, "unlink")
    for remove in (lambda: run.prune_checkpoints(20, Retention(last=1)), lambda: run.forget_checkpoints_after(10)):
        with pytest.raises(CannotWriteError, match=r"cannot remove .*step_000000[12]0.ckpt.json: Permission denied"):
            remove()


# Metrics


def test_metrics_come_back_as_they_were_and_numbers_are_written_by_repr(run):
    rows = [{"step": 1, "train/loss": 0.1 + 0.2, "lr": 1e-5}, {"step": 2, "train/loss": 1.0, "lr": float("nan")}]
    for row in rows:
        run.append_metrics(row)
    assert run.metrics_file.read_text() == "step,train/loss,lr\n1,0.30000000000000004,1e-05\n2,1.0,nan\n"
    assert run.read_metrics()[0] == rows[0]


def test_a_new_column_extends_the_header_and_leaves_the_rows_as_they_are(run):
    run.append_metrics({"train/loss": 0.1 + 0.2, "step": 1})
    run.append_metrics({"step": 2, "val/loss": 2.0})
    run.append_metrics({"step": 3, "train/loss": 3.0})
    assert run.metrics_file.read_text() == "step,train/loss,val/loss\n1,0.30000000000000004,\n2,,2.0\n3,3.0,\n"
    assert run.read_metrics()[1:] == [{"step": 2, "val/loss": 2.0}, {"step": 3, "train/loss": 3.0}]


def test_cutting_forgets_later_rows_and_a_torn_last_line(run):
    for step in range(1, 6):
        run.append_metrics({"step": step, "train/loss": step / 10})
    with run.metrics_file.open("a") as file:
        file.write("6,0.")
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3, 4, 5]
    run.cut_metrics(3)
    run.append_metrics({"step": 4, "train/loss": 0.4})
    assert run.metrics_file.read_text() == "step,train/loss\n1,0.1\n2,0.2\n3,0.3\n4,0.4\n"


def test_what_a_power_cut_made_of_the_last_lines_is_no_row(run):
    for step in (1, 2):
        run.append_metrics({"step": step, "train/loss": step / 10})
    with run.metrics_file.open("ab") as file:
        file.write(b"3,0.3" + bytes(40) + b"\n\xff\xfe\n")
    run.cut_metrics(2)
    assert run.metrics_file.read_text() == "step,train/loss\n1,0.1\n2,0.2\n"


@pytest.mark.parametrize("line", ["3," + "x" * 200_000, "9" * 5000 + ",0.3", '3,"' + "x" * 50_000 + '\n4,"', '3,"'])
def test_a_line_of_any_length_and_any_quotes_costs_itself_alone(run, line):
    for step in (1, 2):
        run.append_metrics({"step": step, "train/loss": step / 10})
    with run.metrics_file.open("a") as file:
        file.write(line + "\n")
    run.cut_metrics(2)
    run.append_metrics({"step": 3, "train/loss": 0.3})
    assert run.read_metrics() == [{"step": step, "train/loss": step / 10} for step in (1, 2, 3)]


@pytest.mark.parametrize("end", ["\r", "\x0b"])
def test_a_header_that_ends_in_an_odd_way_ends_there_for_whoever_cuts_and_whoever_reads(run, end):
    run.metrics_file.write_text(f"step,train/loss{end}ss\n1,0.1\n2,0.2\n", newline="")
    run.cut_metrics(1)
    assert run.read_metrics() == [{"step": 1, "train/loss": 0.1}]


def test_what_is_no_table_of_metrics_is_named_and_left_alone(run):
    run.metrics_file.write_text("step," + "x" * 200_000 + "\n1,2\n")
    with pytest.raises(RunFolderError, match="metrics.csv is no table of metrics"):
        run.cut_metrics(1)
    run.metrics_file.unlink()
    run.metrics_file.mkdir()
    for look in (run.read_metrics, lambda: run.cut_metrics(1)):
        with pytest.raises(RunFolderError, match="cannot read .*metrics.csv: it is no file"):
            look()


def test_bad_steps_are_added_once_each_to_whatever_is_there(run):
    (run.path / "bad_steps.jsonl").write_bytes(b"\xff\xfe\n")
    for step in (1, 2, 1):
        run.append_bad_step({"step": step})
    assert (run.path / "bad_steps.jsonl").read_bytes().splitlines() == [b"\xff\xfe", b'{"step": 1}', b'{"step": 2}']


def test_a_row_that_finds_the_disk_full_leaves_no_part_of_itself(run):
    run.append_metrics({"step": 1, "train/loss": 0.5})
    before = run.metrics_file.read_text()
    with files_of_at_most(len(before) + 3), pytest.raises(CannotWriteError, match="cannot write .*metrics.csv"):
        run.append_metrics({"step": 2, "train/loss": 0.25})
    assert run.metrics_file.read_text() == before


def test_there_is_nothing_to_cut_or_read_before_the_first_row(run):
    run.cut_metrics(0)
    assert run.read_metrics() == []
    assert not run.metrics_file.exists()


# State, lineage and lock


def test_state_is_merged_and_tells_whether_there_is_a_run(run):
    assert run.state() == {}
    assert not run.holds_a_run()
    run.set_state(status="running", step=10)
    run.set_state(step=20)
    assert run.state() == {"status": "running", "step": 20}
    assert run.holds_a_run()


WRONG = [
    '{"step": "x"}',
    '{"max_steps": 1e400}',
    '{"status": {}}',
    '{"status": "asleep"}',
    '{"stage": 7}',
    '{"stage": "\\ud800"}',
    '{"samples_seen": "x"}',
    '{"rewinds": [1]}',
    '{"rewinds": {"a": 1}}',
    '{"rewinds": [{"skipped": [4]}]}',
]


DEEP = "[" * 100_000


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\0", DEEP, *WRONG])
def test_a_damaged_state_is_none_and_is_written_anew(run, content):
    run.set_state(step=10)
    (run.path / "state.json").write_text(content)
    assert run.state() == {}
    run.set_state(step=20)
    assert run.state() == {"step": 20}


@pytest.mark.parametrize(
    "content",
    ["{", "[]", DEEP, '{"init_from": 3}', '{"changes": {}}', '{"changes": [1]}', '{"changes": [{"step": "x"}]}'],
)
def test_a_damaged_lineage_is_none_and_is_written_anew(run, content):
    (run.path / "lineage.json").write_text(content)
    assert run.lineage() == {}
    run.set_lineage(init_from={"from": "runs/a"}, changes=[{"step": 3, "key": "optimizer.lr"}])
    assert run.lineage() == {"init_from": {"from": "runs/a"}, "changes": [{"step": 3, "key": "optimizer.lr"}]}


def test_without_a_state_side_cars_still_tell_that_there_were_checkpoints(run):
    save(run, 10)
    side_car(run.checkpoint_path(10)).write_text("[]")
    with pytest.raises(RunFolderError, match="holds no intact checkpoint, but the run has been saved"):
        run.newest_intact_checkpoint()


def test_whoever_locks_the_folder_removes_what_killed_writers_left(run):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".state.json.{dead.pid}.tmp", f"checkpoints/.step_00000010.ckpt.{dead.pid}.tmp"):
        (run.path / name).touch()
    run.lock()
    run.unlock()
    assert not [path for path in run.path.rglob("*.tmp")]


def test_a_second_process_is_refused_until_the_first_lets_go(run):
    with in_another_process(f"{LOCK}; time.sleep(60)", run) as holder:
        pid = holder.stdout.readline().strip()
        with pytest.raises(RunFolderError, match=f"in use by process {pid}"):
            run.lock()
        holder.kill()
    run.lock()
    with in_another_process(LOCK, run) as other:
        assert "RunFolderError" in other.communicate()[1]
    run.unlock()
    with in_another_process(LOCK, run) as other:
        assert other.wait() == 0


def test_a_run_is_said_to_be_running_only_while_a_process_holds_it(run):
    assert run.status() is None
    run.set_state(status="running")
    with in_another_process(f"{LOCK}; time.sleep(60)", run) as holder:
        holder.stdout.readline()
        assert run.status() == "running"
        holder.kill()
    assert run.status() == "stopped"
    run.set_state(status="failed")
    assert run.status() == "failed"


def test_to_look_at_a_run_that_this_process_trains_lets_no_other_in(run):
    run.lock()
    run.set_state(status="running")
    assert RunFolder(run.path).status() == "running"
    with in_another_process(LOCK, run) as other:
        assert "RunFolderError" in other.communicate()[1]
    run.unlock()
    assert RunFolder(run.path).status() == "stopped"


def test_runs_are_found_by_names_that_are_text(tmp_path):
    for name in (b"a", b"a/b", b"a/b/c", b"\xff", "☃ é".encode()):
        RunFolder(tmp_path / os.fsdecode(name)).set_state(step=1)
    assert list(runs_below(tmp_path)) == ["a", "a/b", "☃ é"]


def test_a_run_that_is_removed_meanwhile_does_not_hide_the_others(tmp_path, monkeypatch):
    for name in ("a", "gone"):
        RunFolder(tmp_path / name).set_state(step=1)
    scandir = os.scandir

    def too_late(path):
        if str(path).endswith("gone"):
            monkeypatch.undo()
            shutil.rmtree(path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", too_late)
    assert "a" in runs_below(tmp_path)


def test_a_forked_child_that_outlives_the_run_does_not_hold_its_lock(run):
    fork = "child = os.fork()\nif child == 0: time.sleep(60)\nprint(child, flush=True); os._exit(0)"
    with in_another_process(f"{LOCK}\n{fork}", run) as parent:
        parent.stdout.readline()
        child = int(parent.stdout.readline())
        try:
            assert parent.wait() == 0
            run.lock()
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_written_is_found_out_at_once(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(CannotWriteError, match="cannot write into .*try1"):
        RunFolder(tmp_path / "runs" / "try1").create()


def test_training_does_not_begin_where_it_cannot_write(tmp_path, tiny_config):
    from sdscratch.commands.train import train

    (tmp_path / "runs").write_text("a file where the folder should be")
    with pytest.raises(CannotWriteError, match="cannot write into"):
        train(tiny_config())

"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import files_of_at_most

from sdscratch.errors import CannotWriteError, RunFolderError
from sdscratch.files import LOCK, FolderLock, remove_halves, replace_folder, unless_taken, write_atomically, write_json


def test_json_is_readable_and_keeps_its_order(tmp_path):
    write_json(tmp_path / "new" / "a.json", {"z": 1, "a": "é"})
    assert (tmp_path / "new" / "a.json").read_text() == '{\n  "z": 1,\n  "a": "é"\n}\n'


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file) -> None:
        file.write(b"new, half")
        file.flush()
        assert path.read_bytes() == b"old"
        file.write(b" and half")

    write_atomically(path, write)
    assert path.read_bytes() == b"new, half and half"
    assert os.listdir(tmp_path) == ["file"]


def test_an_error_in_the_middle_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def write(file) -> None:
        file.write(b"half")
        raise RuntimeError("our own bug")

    with pytest.raises(RuntimeError, match="our own bug"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "write",
    [lambda file: file.write(b"x" * 300_000), lambda file: torch.save({"a": torch.ones(100_000)}, file)],
    ids=["plainly", "by torch.save"],
)
def test_a_full_disk_is_named_and_costs_nothing_that_was_there(tmp_path: Path, write):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with files_of_at_most(200_000), pytest.raises(CannotWriteError, match=f"cannot write {path}: File too large"):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sdscratch.files import write_atomically
write_atomically(Path(sys.argv[1]), lambda file: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_what_a_killed_writer_leaves_is_removed_and_what_a_living_one_writes_is_not(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "killed.tar")])
    (tmp_path / ".other.tmp").touch()
    living = f".living.tar.{os.getpid()}.tmp"
    (tmp_path / living).touch()
    assert len(os.listdir(tmp_path)) == 3
    remove_halves(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [living, ".other.tmp"]


def test_a_folder_is_replaced_whole_or_not_at_all_and_nothing_beside_it_is_touched(tmp_path):
    for mine in ("model", "model.old", "model.tmp"):
        (tmp_path / mine).mkdir()
        (tmp_path / mine / "kept").touch()
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / f".model.{dead.pid}.tmp" / "unet").mkdir(parents=True)
    (tmp_path / f".other.{dead.pid}.tmp").mkdir()

    def full(half):
        (half / "new").touch()
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError):
        replace_folder(tmp_path / "model", full)
    assert sorted(os.listdir(tmp_path)) == [f".other.{dead.pid}.tmp", "model", "model.old", "model.tmp"]
    assert os.listdir(tmp_path / "model") == ["kept"]
    replace_folder(tmp_path / "model", lambda half: (half / "new").touch())
    assert [os.listdir(tmp_path / name) for name in ("model", "model.old", "model.tmp")] == [
        ["new"],
        ["kept"],
        ["kept"],
    ]


def test_a_folder_that_is_to_be_new_takes_no_place_that_another_process_has_filled_meanwhile(tmp_path):
    def ours(half):
        (half / "ours").touch()

    def ours_too_late(half):
        ours(half)
        (tmp_path / "model" / "theirs").touch()

    (tmp_path / "model").mkdir()
    with pytest.raises(OSError):
        replace_folder(tmp_path / "model", ours_too_late, only_new=True)
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "theirs"]
    (tmp_path / "empty").mkdir()
    replace_folder(tmp_path / "empty", ours, only_new=True)
    assert os.listdir(tmp_path / "empty") == ["ours"]


def test_a_folder_that_cannot_be_is_an_error_that_names_the_path(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotWriteError, match="file/a.json"):
        write_json(tmp_path / "file" / "a.json", {})


def test_a_lock_that_its_holder_has_removed_keeps_nobody_out_of_the_next_ones_folder(tmp_path, monkeypatch):
    """Between opening the file and locking it, the one who held it is done, and removes it: what is locked is a ghost."""
    first, waiting = FolderLock(tmp_path), FolderLock(tmp_path)
    first.take()
    lock, calls = fcntl.lockf, list[int]()

    def lock_too_late(*arguments: object) -> None:
        if not calls:
            first.remove()
        calls.append(1)
        lock(*arguments)

    monkeypatch.setattr(fcntl, "lockf", lock_too_late)
    waiting.take()
    assert len(calls) == 2 and (tmp_path / LOCK).exists()
    code = "import sys; from pathlib import Path; from sdscratch.files import FolderLock; FolderLock(Path(sys.argv[1])).take()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert f"is in use by process {os.getpid()}" in done.stderr


def test_a_lock_for_a_while_leaves_nothing_behind_and_lets_others_in_after_an_error(tmp_path):
    with pytest.raises(RunFolderError, match="from within"), FolderLock(tmp_path).held():
        assert (tmp_path / LOCK).exists()
        raise RunFolderError("from within")
    assert not list(tmp_path.iterdir())
    with FolderLock(tmp_path).held():
        pass


def test_a_disk_without_locks_is_not_taken_for_a_folder_in_use(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(CannotWriteError, match="cannot lock .*: No locks available"), FolderLock(tmp_path).held(True):
        pass


def test_a_folder_whose_link_is_renamed_while_it_is_locked_is_free_afterwards(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to("disk")
    lock = FolderLock(tmp_path / "link")
    lock.take()
    (tmp_path / "link").rename(tmp_path / "aside")
    lock.release()
    assert not FolderLock(tmp_path / "aside").is_taken


def test_of_two_that_want_one_name_the_second_leaves_the_firsts_file(tmp_path):
    for content in (b"first", b"second"):
        write_atomically(tmp_path / "file", lambda file, content=content: file.write(content), rename=unless_taken)
    assert (tmp_path / "file").read_bytes() == b"first" and os.listdir(tmp_path) == ["file"]


def test_where_there_are_no_links_a_name_is_given_all_the_same(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_atomically(tmp_path / "file", lambda file: file.write(b"new"), rename=unless_taken)
    assert (tmp_path / "file").read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]

"""Files appear whole or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import files_of_at_most

from sdscratch.errors import CannotWriteError
from sdscratch.files import remove_halves, write_atomically, write_json


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


def test_a_folder_that_cannot_be_is_an_error_that_names_the_path(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(CannotWriteError, match="file/a.json"):
        write_json(tmp_path / "file" / "a.json", {})

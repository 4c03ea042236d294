"""Pipes, circular links and folders where files should be: refused or passed over, never waited for."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_shards import image_samples

from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import MANIFEST
from sdscratch.data.selection import ROWS, SELECTION
from sdscratch.data.shards import UNFINISHED, write_shards
from sdscratch.errors import DataError
from sdscratch.prepare.download.url_rows import UrlRows
from sdscratch.prepare.filter.metadata import metadata_files
from sdscratch.prepare.pack import DiffusionDB, Folder, JourneyDB, Tars
from sdscratch.prepare.select import select
from sdscratch.prepare.verify import verify


def circle(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, circle])
@pytest.mark.parametrize("name", [MANIFEST, SELECTION, ROWS])
def test_the_files_of_a_folder_of_shards(make, name, tmp_path, monkeypatch):
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    write_shards(tmp_path / "shards", image_samples(3), {})
    select(tmp_path / "shards", tmp_path / "some", "true")
    folder = tmp_path / ("shards" if name == MANIFEST else "some")
    (folder / name).unlink()
    make(folder / name)
    for read in (verify, ShardIndex.open):
        with pytest.raises(DataError, match=f"{name} cannot be read|no whole selection"):
            read(folder)


def test_a_mark_of_an_unfinished_folder(tmp_path):
    (tmp_path / UNFINISHED).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / UNFINISHED)
    with pytest.raises(DataError, match="unfinished.json is damaged"):
        write_shards(tmp_path, image_samples(3), {})


def test_the_files_of_collections(tmp_path):
    (tmp_path / "imgs").mkdir()
    for name in ("metadata.csv", "part-000001.zip", "imgs/000.tgz", "a_repath.jsonl", "rows.parquet"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match="no pictures in"):
        Folder(tmp_path, source="test").parts(10)
    with pytest.raises(DataError, match="no part-.*zip in"):
        DiffusionDB(tmp_path).parts(10)
    with pytest.raises(DataError, match="no tgz files in"):
        JourneyDB(tmp_path).parts(10)
    with pytest.raises(DataError, match="no .*_repath.jsonl.* in"):
        JourneyDB(tmp_path).identity()
    with pytest.raises(DataError, match="no rows in"):
        UrlRows(tmp_path)


@pytest.mark.parametrize(
    "look_through",
    [
        lambda folder: metadata_files(folder, folder / "out"),
        lambda folder: Folder(folder, "test").files,
        lambda folder: Tars(folder).adopt(),
    ],
    ids=["filter", "pack", "adopt"],
)
@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_folder_further_down_that_cannot_be_read_is_named_not_passed_over(
    look_through: Callable, number: int, tmp_path, monkeypatch
):
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("url\n1\n")
    scan = os.scandir

    def scan_but_one(path: str) -> object:
        if str(path).endswith("bad"):
            raise OSError(number, os.strerror(number), path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_but_one)
    with pytest.raises(DataError, match="bad cannot be read: "):
        look_through(tmp_path)


def test_a_folder_that_is_gone_while_its_neighbours_are_looked_through_is_passed_over(tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    (tmp_path / "rows.csv").write_text("url\n1\n")
    scan = os.scandir

    def remove_first(path: str) -> object:
        if str(path).endswith("gone"):
            os.rmdir(path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", remove_first)
    assert metadata_files(tmp_path, tmp_path / "out") == [tmp_path / "rows.csv"]

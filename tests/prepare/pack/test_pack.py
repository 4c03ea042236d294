"""What holds for collections of every kind: sequence, stops, workers, sizes, bad pictures, other settings."""

from __future__ import annotations

import json
import pickle

import pytest
from raw_collections import coco, diffusiondb, journeydb, picture, records, samples, shards, vggface2, write_files

from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import DROPPED, UNFINISHED
from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare.pack import Coco, DiffusionDB, Folder, JourneyDB, VGGFace2
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pictures import Form

PACKER = Packer(Form(), shard_size=3)


def folder(path, count=7):
    files = {f"{n % 2}/{n}.jpg": picture(n) for n in range(count)} | {
        f"{n % 2}/{n}.txt": f"caption {n}" for n in range(count)
    }
    return write_files(path, files)


COLLECTIONS = {
    "folder": lambda path: Folder(folder(path), source="test"),
    "diffusiondb": lambda path: DiffusionDB(diffusiondb(path)),
    "journeydb": lambda path: JourneyDB(journeydb(path)),
    "vggface2": lambda path: VGGFace2(vggface2(path)),
    "coco": lambda path: Coco(coco(path), crop="none"),
}


@pytest.fixture(params=sorted(COLLECTIONS))
def collection(request, tmp_path):
    return COLLECTIONS[request.param](tmp_path / "raw")


class Stopped(BaseException):
    """As Ctrl-C is."""


@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_a_job_that_was_stopped_goes_on_to_the_same_bytes_and_keeps_what_was_whole(
    collection, stop_after, tmp_path, monkeypatch
):
    PACKER.pack(collection, tmp_path / "whole")
    stored = Form.store
    left = [stop_after]

    def store(*args):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return stored(*args)

    out = tmp_path / "stopped"
    monkeypatch.setattr(Form, "store", store)
    try:
        PACKER.pack(collection, out)
    except Stopped:
        assert (out / UNFINISHED).exists() and not (out / MANIFEST).exists()
    monkeypatch.undo()
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    PACKER.pack(collection, out)
    assert shards(out) == shards(tmp_path / "whole")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_second_call_writes_nothing(collection, tmp_path):
    first = PACKER.pack(collection, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert PACKER.pack(collection, tmp_path / "out") == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == before


def test_nothing_is_written_into_the_collection_and_every_record_is_complete(collection, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")}
    manifest = PACKER.pack(collection, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "raw").rglob("*")} == before
    found = records(tmp_path / "out")
    assert len(found) == manifest.total > 0
    for record in found.values():
        assert {"captions", "source", "licence", "width", "height", "original_width"} <= record.keys()
        assert record["captions"] and all(isinstance(text, str) for text in record["captions"])


def test_several_processes_write_the_same_bytes(tmp_path):
    archives = DiffusionDB(diffusiondb(tmp_path / "raw"))
    PACKER.pack(archives, tmp_path / "one")
    Packer(Form(), shard_size=3, workers=2).pack(archives, tmp_path / "two")
    assert shards(tmp_path / "one") == shards(tmp_path / "two")


def test_what_travels_to_a_process_does_not_grow_with_the_collection(collection):
    first, *_, last = collection.parts(1)
    keys = [item.key.encode() for item in last.found()]
    assert collection.identity() and keys and not any(key in pickle.dumps(first) for key in keys)
    assert any(key in pickle.dumps(last) for key in keys) or not last.is_shard


def test_a_shard_is_a_fixed_slice_whatever_falls(tmp_path):
    whole = PACKER.pack(Folder(folder(tmp_path / "raw"), "test"), tmp_path / "whole")
    (tmp_path / "raw/0/0.txt").unlink()  # the first of the sorted list
    less = PACKER.pack(Folder(tmp_path / "raw", "test"), tmp_path / "less")
    assert [shard.samples for shard in whole.shards] == [3, 3, 1] and [s.samples for s in less.shards] == [2, 3, 1]
    assert whole.shards[1:] == less.shards[1:] and less.dropped == {"no caption": 1}


def test_an_archive_of_a_whole_number_of_shards_ends_without_an_empty_one(tmp_path):
    manifest = PACKER.pack(JourneyDB(journeydb(tmp_path / "raw", archives=1, pictures=6)), tmp_path / "out")
    assert [shard.name for shard in manifest.shards] == ["000-00000.tar", "000-00001.tar"]
    assert sorted(shards(tmp_path / "out")) == ["000-00000.tar", "000-00001.tar", MANIFEST]


def test_pictures_that_are_good_are_stored_as_they_are(tmp_path):
    PACKER.pack(Folder(folder(tmp_path / "raw"), "test"), tmp_path / "out")
    stored = samples(tmp_path / "out")
    assert stored["1/3"]["jpg"] == (tmp_path / "raw/1/3.jpg").read_bytes()
    assert records(tmp_path / "out")["1/3"]["captions"] == ["caption 3"]


def test_large_pictures_are_reduced_and_small_ones_fall(tmp_path):
    files = {"a.png": picture(0, (40, 80), "PNG"), "b.jpg": picture(1, (19, 50)), "c.jpg": picture(2, (20, 50))}
    write_files(tmp_path / "raw", files | {f"{name}.txt": name for name in "abc"})
    manifest = Packer(Form(min_size=20, size=20)).pack(Folder(tmp_path / "raw", "test"), tmp_path / "out")
    fields = ("width", "height", "original_width", "original_height")
    sizes = {key: [record[field] for field in fields] for key, record in records(tmp_path / "out").items()}
    assert sizes == {"a": [20, 40, 40, 80], "c": [20, 50, 20, 50]} and manifest.dropped == {"too small": 1}
    assert samples(tmp_path / "out")["c"]["jpg"] == (tmp_path / "raw/c.jpg").read_bytes()
    line = json.loads((tmp_path / "out" / DROPPED).read_text())
    assert line["key"] == "b" and "19x50 pixels, expected a shorter side of at least 20" in line["detail"]


def test_a_bad_picture_stops_it_or_falls(tmp_path):
    write_files(folder(tmp_path / "raw"), {"0/4.jpg": picture(4)[:300]})
    whole = Folder(tmp_path / "raw", "test")
    with pytest.raises(DataError, match=r"0/4.jpg is a bad picture: .*on_bad=quarantine"):
        PACKER.pack(whole, tmp_path / "out")
    manifest = Packer(Form(), shard_size=3, on_bad="quarantine").pack(whole, tmp_path / "out")
    assert manifest.total == 6 and manifest.dropped == {"not decodable": 1}


def test_what_other_settings_or_another_collection_made_is_refused(tmp_path):
    PACKER.pack(Folder(folder(tmp_path / "raw"), "test"), tmp_path / "out")
    before = shards(tmp_path / "out")
    with pytest.raises(DataError, match="differ in size"):
        Packer(Form(size=16), shard_size=3).pack(Folder(tmp_path / "raw", "test"), tmp_path / "out")
    write_files(tmp_path / "raw", {"new.jpg": picture(99), "new.txt": "new"})
    with pytest.raises(DataError, match="differ in files"):
        PACKER.pack(Folder(tmp_path / "raw", "test"), tmp_path / "out")
    assert shards(tmp_path / "out") == before and Manifest.read(tmp_path / "out").total == 7


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Form(min_size=0), "min_size is 0"),
        (lambda: Form(quality=101), "quality is 101"),
        (lambda: Packer(Form(), shard_size=0), "shard_size is 0"),
        (lambda: Packer(Form(), on_bad="skip"), "on_bad='skip' is unknown"),
        (lambda: Coco("x", crop="face"), "crop='face' is unknown; expected person or none"),
        (lambda: Coco("x", min_height=55), "min_height is 55: expected a share"),
        (lambda: VGGFace2("x", crop="person"), "crop='person' is unknown; expected face or none"),
        (lambda: VGGFace2("x", per_identity=0), "per_identity is 0"),
        (lambda: JourneyDB("x", caption="title"), "caption='title' is unknown"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make, said):
    with pytest.raises(ConfigError, match=said):
        make()


@pytest.mark.parametrize("kind", [Folder, DiffusionDB, JourneyDB, VGGFace2, Coco])
def test_a_folder_that_holds_no_such_collection_is_named(kind, tmp_path):
    arguments = {"source": "test"} if kind is Folder else {}
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DataError, match=str(tmp_path)):
            PACKER.pack(kind(path, **arguments), tmp_path / "out")
    assert not (tmp_path / "out").exists()

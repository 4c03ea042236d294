from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tarfile

import pytest
import webdataset
from tiny_shards import image_samples, latent_samples

from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import DROPPED, UNFINISHED, Dropped, ShardFolder, shard_name, write_shards
from sdscratch.errors import CannotWriteError, DataError, RunFolderError
from sdscratch.files import LOCK

MADE_BY = {"what": "noise"}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_manifest_says_what_lies_in_the_folder(image_shards):
    manifest = Manifest.read(image_shards)
    assert manifest.kind == "images" and manifest.made_by == MADE_BY
    assert [shard.samples for shard in manifest.shards] == [7, 7, 7, 2] and manifest.total == 23
    assert manifest.sources == {"test": 23} and manifest.licences == {"CC0-1.0": 23}
    for shard in manifest.shards:
        data = (image_shards / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.size, shard.sha256)
    assert sorted(contents(image_shards)) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar", MANIFEST]


def test_the_same_samples_give_the_same_bytes(tmp_path, image_shards):
    write_shards(tmp_path / "again", image_samples(23), MADE_BY, shard_size=7)
    assert contents(tmp_path / "again") == contents(image_shards)


def test_webdataset_reads_the_shards(image_shards):
    dataset = webdataset.WebDataset(
        [str(image_shards / "00000.tar"), str(image_shards / "00001.tar")], shardshuffle=False, empty_check=False
    )
    samples = list(dataset)
    assert [sample["__key__"] for sample in samples] == [f"{n:06d}" for n in range(14)]
    assert samples[3]["png"] == dict(image_samples(4))["000003"]["png"]


def test_members_have_no_owner_no_time_and_one_mode(image_shards):
    with tarfile.open(image_shards / "00000.tar") as tar:
        assert {(m.uid, m.gid, m.mtime, m.mode, m.uname, m.type) for m in tar} == {(0, 0, 0, 0o644, "", b"0")}


def test_a_finished_folder_is_left_alone(image_shards):
    before = {path: path.stat().st_mtime_ns for path in image_shards.iterdir()}

    def unread():
        raise AssertionError("nothing needs to be made")
        yield

    assert write_shards(image_shards, unread(), MADE_BY) == Manifest.read(image_shards)
    assert {path: path.stat().st_mtime_ns for path in image_shards.iterdir()} == before


def test_shards_made_by_something_else_are_refused(image_shards):
    before = contents(image_shards)
    with pytest.raises(DataError, match="other settings .they differ in what.*Delete that folder"):
        write_shards(image_shards, image_samples(3), {"what": "other"})
    assert contents(image_shards) == before


def test_tars_of_another_origin_are_refused(tmp_path):
    (tmp_path / "00000.tar").write_bytes(b"precious")
    with pytest.raises(DataError, match="without a manifest"):
        write_shards(tmp_path, image_samples(3), MADE_BY)
    assert contents(tmp_path) == {"00000.tar": b"precious"}


def test_an_interrupted_job_leaves_no_manifest_and_is_finished_by_the_next(tmp_path, image_shards):
    def interrupted():
        yield from list(image_samples(23))[:17]
        raise KeyboardInterrupt

    folder = tmp_path / "cut"
    with pytest.raises(KeyboardInterrupt):
        write_shards(folder, interrupted(), MADE_BY, shard_size=5)
    shards = [shard_name(n) for n in range(3)]
    assert sorted(contents(folder)) == sorted([*shards, *(f"{name}.json" for name in shards), UNFINISHED, LOCK])
    with pytest.raises(DataError, match="other settings"):
        write_shards(folder, image_samples(3), {"what": "other"})
    write_shards(folder, image_samples(23), MADE_BY, shard_size=7)
    assert contents(folder) == contents(image_shards)


def test_shards_may_be_written_in_any_sequence_and_those_that_are_there_are_kept(tmp_path, image_shards):
    samples, names = list(image_samples(23)), [shard_name(n) for n in range(4)]
    parts = dict(zip(names, (samples[n : n + 7] for n in range(0, 23, 7)), strict=True))
    first = ShardFolder(tmp_path / "cut", MADE_BY)
    assert first.claim() is None
    for name in names[2:]:
        first.write(name, parts[name])
    before = {path: path.stat().st_mtime_ns for path in first.path.glob("*.tar")}

    second = ShardFolder(tmp_path / "cut", MADE_BY)
    assert second.claim() is None
    assert [second.has(name) for name in names] == [False, False, True, True]
    (second.path / names[3]).write_bytes(b"cut")
    assert not second.has(names[3])
    for name in names:
        if not second.has(name):
            second.write(name, parts[name])
    assert second.finish(names) == Manifest.read(image_shards) == second.claim()
    assert contents(second.path) == contents(image_shards)
    assert (second.path / names[2]).stat().st_mtime_ns == before[second.path / names[2]]


def test_what_is_dropped_is_counted_and_named(tmp_path):
    bad = [Dropped(f"bad{n}", "not decodable", "the image is cut off") for n in range(3)]
    samples = list(image_samples(5))
    manifest = write_shards(tmp_path, [bad[0], *samples[:4], bad[1], samples[4], bad[2]], MADE_BY, shard_size=2)
    assert [shard.samples for shard in manifest.shards] == [2, 2, 1] and manifest.total == 5
    assert manifest.dropped == {"not decodable": 3} and manifest == Manifest.read(tmp_path)
    lines = [json.loads(line) for line in (tmp_path / DROPPED).read_text().splitlines()]
    assert lines == [sample._asdict() for sample in bad]


def test_a_shard_of_which_everything_is_dropped_makes_no_tar(tmp_path):
    folder = ShardFolder(tmp_path, MADE_BY)
    folder.claim()
    folder.write("00000.tar", [Dropped("a", "too small")])
    folder.write("00001.tar", image_samples(2))
    assert folder.has("00000.tar") and not (tmp_path / "00000.tar").exists()
    manifest = folder.finish(["00000.tar", "00001.tar"])
    assert [shard.name for shard in manifest.shards] == ["00001.tar"] and manifest.dropped == {"too small": 1}
    with pytest.raises(DataError, match=r"nothing to write.*All were dropped: {'too small': 1}"):
        write_shards(tmp_path / "none", [Dropped("a", "too small")], MADE_BY)


def test_a_folder_that_another_process_writes_is_refused_and_free_again_when_that_has_ended(tmp_path):
    holds = (
        "import sys, time; from sdscratch.data.shards import ShardFolder; "
        f"folder = ShardFolder({str(tmp_path)!r}, {MADE_BY!r}); folder.claim(); print('claimed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        with pytest.raises(
            RunFolderError, match=f"in use by process {other.pid}. Wait for it, or choose another folder"
        ):
            ShardFolder(tmp_path, MADE_BY).claim()
        other.kill()
    assert ShardFolder(tmp_path, MADE_BY).claim() is None


def test_who_wants_the_same_shards_waits_for_whoever_writes_them(tmp_path):
    writes = (
        "import sys, time; from sdscratch.data.shards import ShardFolder; "
        f"folder = ShardFolder({str(tmp_path)!r}, {MADE_BY!r}); folder.claim(); print('claimed', flush=True); time.sleep(0.5); "
        "folder.write('00000.tar', [('theirs', {'txt': b'a'})]); folder.finish(['00000.tar'])"
    )
    with subprocess.Popen([sys.executable, "-c", writes], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"claimed\n"
        manifest = write_shards(tmp_path, image_samples(3), MADE_BY)
    assert other.returncode == 0 and [shard.samples for shard in manifest.shards] == [1]


def test_what_a_killed_writer_left_half_written_is_gone_after_the_next_one(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    tmp_path.joinpath(f".00003.tar.{ended.pid}.tmp").write_bytes(b"half")
    write_shards(tmp_path, image_samples(3), MADE_BY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000.tar", MANIFEST]


def test_a_damaged_folder_is_written_anew(image_shards):
    before = contents(image_shards)
    (image_shards / "00001.tar").unlink()
    write_shards(image_shards, image_samples(23), MADE_BY, shard_size=7)
    assert contents(image_shards) == before


@pytest.mark.parametrize(
    ("key", "members"),
    [
        ("../up", {"txt": b""}),
        ("/root", {"txt": b""}),
        ("a.b", {"txt": b""}),
        ("k" * 81, {"txt": b""}),
        ("folder/", {"txt": b""}),
        ("new\nline", {"txt": b""}),
        ("ünicode", {"txt": b""}),
        ("", {"txt": b""}),
        ("key", {"pyd": b"", "jpg": b""}),
        ("key", {"npy": b""}),
    ],
)
def test_what_no_reader_takes_is_not_written(tmp_path, key, members):
    with pytest.raises(DataError, match="cannot write sample"):
        write_shards(tmp_path / "new", [(key, members)], MADE_BY)
    assert contents(tmp_path / "new").keys() == {UNFINISHED, LOCK}


def test_a_key_twice_no_samples_or_two_kinds_are_refused(tmp_path):
    with pytest.raises(DataError, match="'000001' twice"):
        write_shards(tmp_path / "a", [*image_samples(2), *image_samples(2)][1:], MADE_BY)
    with pytest.raises(DataError, match="found none"):
        write_shards(tmp_path / "b", [], MADE_BY)
    with pytest.raises(DataError, match="images.*latents"):
        write_shards(tmp_path / "c", [*image_samples(1), *latent_samples(1)], MADE_BY, shard_size=1)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields | {"format": 99},
        lambda fields: fields | {"total": 1},
        lambda fields: fields | {"kind": "sounds"},
        lambda fields: fields | {"shards": [shard | {"name": "../" + shard["name"]} for shard in fields["shards"]]},
        lambda fields: fields | {"shards": [{"name": "00000.tar"}]},
        lambda fields: {key: value for key, value in fields.items() if key != "made_by"},
        lambda fields: [],
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(image_shards, change):
    path = image_shards / MANIFEST
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(DataError, match=MANIFEST):
        Manifest.read(image_shards)


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CannotWriteError, match="cannot write .*file"):
        write_shards(tmp_path / "file" / "shards", image_samples(1), MADE_BY)


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\udcff"])
def test_a_damaged_mark_of_an_unfinished_folder_is_named_and_nothing_is_written(tmp_path, content):
    (tmp_path / "unfinished.json").write_bytes(content.encode(errors="surrogateescape"))
    (tmp_path / "00000.tar").write_bytes(b"someone's")
    with pytest.raises(DataError, match="unfinished.json is damaged: what made"):
        write_shards(tmp_path, image_samples(3), {"what": "noise"})
    assert (tmp_path / "00000.tar").read_bytes() == b"someone's"


@pytest.mark.parametrize("content", ["{}", '{"shard": null}', '{"shard": 5}', "[]", "{"])
def test_a_shard_whose_side_car_is_damaged_is_written_again(tmp_path, content):
    folder = ShardFolder(tmp_path / "made", {"what": "noise"})
    folder.claim()
    folder.write("00000.tar", image_samples(3))
    whole = (tmp_path / "made" / "00000.tar.json").read_text()
    assert folder.has("00000.tar")
    (tmp_path / "made" / "00000.tar.json").write_text(content)
    assert not folder.has("00000.tar")
    (tmp_path / "made" / "00000.tar.json").write_text(whole)
    assert folder.has("00000.tar")

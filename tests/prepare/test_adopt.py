"""Tars made elsewhere, adopted where they lie."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.errors import ConfigError, DataError, RunFolderError
from sdscratch.files import LOCK
from sdscratch.prepare.pack.adopt import BAD, Tars


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, members: list[tuple[str, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(content), 1234567
            archive.addfile(member, io.BytesIO(content))


def sample(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    record = json.dumps({"caption": "another field", "source": "elsewhere"}).encode()
    return [
        (f"{key}.png", picture(number)),
        (f"{key}.txt", b"a caption"),
        (f"{key}.json", record),
        (f"{key}.cls", b"3"),
    ]


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    write(tmp_path / "tars/a.tar", [member for n in range(3) for member in sample(f"a{n}", n)])
    write(tmp_path / "tars/b.tar", [member for n in range(2) for member in sample(f"sub/b{n}", n)])
    return tmp_path / "tars"


def untouched(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def test_adopted_tars_are_left_as_they_are_and_open_like_any_shards(tars):
    before = untouched(tars)
    manifest = Tars(tars).adopt()
    assert untouched(tars) == before and manifest == Manifest.read(tars)
    assert [shard.samples for shard in manifest.shards] == [3, 2] and manifest.sources == {"elsewhere": 5}
    assert sorted(path.name for path in tars.iterdir() if path.suffix != ".tar") == [
        next(tars.glob("index-*.npy")).name,
        MANIFEST,
    ]
    index = ShardIndex.open(tars)
    assert index.key(4) == "sub/b1" and index.read(4)["txt"] == b"a caption"


def test_real_tars_of_webdatasets_own_writer_are_adopted(tmp_path):
    (tmp_path / "tars").mkdir()
    with webdataset.TarWriter(str(tmp_path / "tars/000.tar")) as writer:
        for n in range(4):
            writer.write({"__key__": f"{n:06d}", "png": picture(n), "txt": f"caption {n}", "json": {"n": n}})
    assert Tars(tmp_path / "tars").adopt().total == 4


def test_the_real_shards_are_adopted_as_they_are(tmp_path):
    root = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[3] / "shared" / "data"))
    shard = root / "captions-real" / "train-native-00001.tar"
    if not shard.is_file():
        pytest.skip(f"no {shard}: set SDSCRATCH_DATA_PACK")
    (tmp_path / "tars").mkdir()
    shutil.copy(shard, tmp_path / "tars")
    manifest = Tars(tmp_path / "tars").adopt()
    assert manifest.total == sum(manifest.licences.values()) > 100 and "unknown" not in manifest.sources


def test_several_processes_find_the_same_and_an_adopted_folder_is_left_alone(tars):
    assert Tars(tars).adopt(workers=2) == Tars(tars).adopt()
    (tars / MANIFEST).unlink()
    assert Tars(tars).adopt() == Manifest.read(tars)


def test_a_second_attempt_reads_only_what_changed_since(tars, monkeypatch):
    write(tars / "b.tar", [("x.png", b"no picture"), ("x.txt", b"x")])
    with pytest.raises(DataError, match="1 of the samples in .* are bad, the first is x"):
        Tars(tars).adopt()
    assert not (tars / MANIFEST).exists() and len(ShardIndex.open(tars)) == 4  # as it was before
    write(tars / "b.tar", sample("x"))
    from sdscratch.prepare.pack import adopt

    read = []
    part = adopt._part
    monkeypatch.setattr(adopt, "_part", lambda path: read.append(path.name) or part(path))
    assert Tars(tars).adopt().total == 4 and read == ["b.tar"]


def test_bad_samples_stay_where_they_are_and_are_named(tars):
    bad = [("p.png", b"no picture"), ("p.txt", b"p"), ("q.png", picture(1)), ("r.txt", b"r")]
    bad += [("s.png", picture(1)), ("s.txt", b"s"), ("s.json", b"{")]
    write(tars / "c.tar", bad)
    manifest = Tars(tars).adopt(on_bad="quarantine")
    lines = [json.loads(line) for line in (tars / BAD).read_text().splitlines()]
    assert manifest.total == 9 == len(ShardIndex.open(tars)) and not manifest.dropped
    assert {line["key"]: line["reason"].partition(":")[0] for line in lines} == {
        "p": "the image is none of JPEG, PNG, WEBP",
        "q": "it has no caption",
        "r": "it has no image",
        "s": "its json cannot be read",
    }


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: [path.unlink() for path in folder.glob("*.tar")], "no tars in"),
        (lambda folder: (folder / "c.tar.gz").touch(), "c.tar.gz is compressed"),
        (lambda folder: write(folder / "below/c.tar", sample("c")), "below/c.tar lies below"),
        (lambda folder: write(folder / "c.tar", [("../up.png", picture(1))]), r"a member named '../up.png'"),
        (lambda folder: write(folder / "c.tar", [("ü.png", picture(1))]), "a member named 'ü.png'"),
        (lambda folder: write(folder / "c.tar", sample("k" * 81)), "the key 'k{81}': expected up to 80 letters"),
        (lambda folder: write(folder / "c.tar", sample("v1.2/c")), "the key 'v1.2/c': expected up to 80 letters"),
        (lambda folder: write(folder / "c.tar", [*sample("c"), *sample("d"), *sample("c")]), "the sample 'c' twice"),
        (lambda folder: write(folder / "c.tar", [*sample("c"), *sample("c")]), "holds 'c.png' twice"),
        (lambda folder: write(folder / "c.tar", [("c.latent.npy", b"x")]), "holds latents"),
        (lambda folder: (folder / "a.tar").write_bytes((folder / "a.tar").read_bytes()[:3000]), "a.tar is cut off"),
        (lambda folder: (folder / "unfinished.json").write_text("{}"), "was never finished"),
    ],
)
def test_what_cannot_be_adopted_is_named_and_left_alone(spoil, said, tars):
    spoil(tars)
    before = untouched(tars)
    with pytest.raises(DataError, match=said):
        Tars(tars).adopt(on_bad="quarantine")
    assert untouched(tars) == before and not (tars / MANIFEST).exists()


def test_a_folder_without_samples_or_an_unknown_policy_is_refused(tmp_path, tars):
    write(tmp_path / "none/a.tar", [("a.mp3", b"x")])
    with pytest.raises(DataError, match="no samples in the tars"):
        Tars(tmp_path / "none").adopt()
    with pytest.raises(ConfigError, match="on_bad='skip' is unknown"):
        Tars(tars).adopt(on_bad="skip")


def test_tars_that_changed_after_they_were_adopted_are_refused(tars):
    Tars(tars).adopt()
    write(tars / "b.tar", [member for n in range(20) for member in sample(f"b{n}")])
    with pytest.raises(DataError, match="b.tar has .* bytes, its manifest says"):
        Tars(tars).adopt()


def test_a_pipe_with_the_name_of_a_tar_is_refused_not_waited_for(tars):
    os.mkfifo(tars / "c.tar")
    with pytest.raises(DataError, match="c.tar is no file"):
        Tars(tars).adopt()


def test_an_absolute_name_is_refused(tars):
    write(tars / "c.tar", sample("/etc/c"))
    with pytest.raises(DataError, match="holds a member named '/etc/c.png'"):
        Tars(tars).adopt()


def test_two_adoptions_of_one_folder_at_once_are_kept_apart(tars):
    code = """if True:
        import sys; from pathlib import Path; from sdscratch.files import FolderLock
        with FolderLock(Path(sys.argv[1])).held():
            print(1, flush=True)
            input()"""
    words = [sys.executable, "-c", code, str(tars)]
    other = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"1\n"
    with pytest.raises(RunFolderError, match=f"is in use by process {other.pid}"):
        Tars(tars).adopt()
    assert not (tars / MANIFEST).exists()
    other.communicate(b"\n")
    assert Tars(tars).adopt().total == 5 and not (tars / LOCK).exists()


def test_notes_that_another_adoption_removes_meanwhile_are_not_missed(tars, monkeypatch):
    (tars / ".adoption").mkdir()
    scandir = os.scandir

    def too_late(path):
        if str(path).endswith(".adoption"):
            (tars / ".adoption").rmdir()
            monkeypatch.undo()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", too_late)
    assert Tars(tars).adopt().total == 5


def test_the_lock_of_an_adoption_that_was_killed_at_its_very_end_is_tidied_up(tars):
    manifest = Tars(tars).adopt()
    (tars / LOCK).write_text("1")
    assert Tars(tars).adopt() == manifest and not (tars / LOCK).exists()

from __future__ import annotations

import io
import json
import multiprocessing
import os
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import encode, image_samples, picture

from sdscratch.data.index import OpenFiles, ShardIndex
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError

Entry = tuple[str, bytes] | tarfile.TarInfo


def write_tar(path: Path, entries: Iterable[Entry], format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar from elsewhere: no manifest, any members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                member = tarfile.TarInfo(entry[0])
                member.size = len(entry[1])
                tar.addfile(member, io.BytesIO(entry[1]))
    return path


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_samples_are_read_as_they_were_written(image_shards):
    index, samples = ShardIndex.open(image_shards), list(image_samples(23))
    assert len(index) == 23 and index.kind == "images" and index.made_by == {"what": "noise"}
    np.testing.assert_array_equal(index.shard_sizes, [7, 7, 7, 2])
    for n in np.random.default_rng(0).permutation(23):
        assert (index.key(n), index.read(n)) == samples[n]
    with pytest.raises(IndexError):
        index.read(23)


def test_offsets_are_kept_beside_the_shards_and_made_again_when_lost_or_damaged(image_shards):
    first = ShardIndex.open(image_shards)
    [kept] = image_shards.glob("index-*.npy")
    assert isinstance(first.entries, np.memmap)
    good = kept.read_bytes()
    for damage in (lambda: kept.unlink(), lambda: kept.write_bytes(b""), lambda: kept.write_bytes(good[:-9])):
        damage()
        assert ShardIndex.open(image_shards).read(20) == first.read(20)
        assert kept.read_bytes() == good
    np.save(kept, np.array([{"a": "pickle"}], dtype=object), allow_pickle=True)
    assert ShardIndex.open(image_shards).key(20) == first.key(20)


def test_stale_offsets_are_never_used(image_shards):
    fingerprint = ShardIndex.open(image_shards).fingerprint
    for path in image_shards.glob("*.tar"):
        path.unlink()
    (image_shards / MANIFEST).unlink()
    write_shards(image_shards, list(image_samples(23))[::-1], {"what": "reversed"}, shard_size=7)
    index = ShardIndex.open(image_shards)
    assert index.key(0) == "000022" and index.fingerprint != fingerprint
    assert len(list(image_shards.glob("index-*.npy"))) == 1


def test_whoever_has_no_home_reads_a_read_only_folder_all_the_same(image_shards, monkeypatch):
    def homeless() -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    monkeypatch.delenv("SDSCRATCH_CACHE", raising=False)
    before = listing(image_shards)
    image_shards.chmod(0o555)
    try:
        assert len(ShardIndex.open(image_shards)) == 23
        assert listing(image_shards) == before
    finally:
        image_shards.chmod(0o755)


def test_a_read_only_folder_is_left_as_it_is(image_shards, cache):
    before = listing(image_shards)
    image_shards.chmod(0o555)
    try:
        first = ShardIndex.open(image_shards)
        assert listing(image_shards) == before
        [kept] = cache.glob("index-*.npy")
        written = kept.stat().st_mtime_ns
        assert ShardIndex.open(image_shards).read(5) == first.read(5)
        assert kept.stat().st_mtime_ns == written
        assert ShardIndex.open(image_shards, cache=image_shards / MANIFEST / "no folder").read(5) == first.read(5)
        assert listing(image_shards) == before
    finally:
        image_shards.chmod(0o755)


def put_into_manifest(folder: Path, **values: object) -> None:
    """Replace fields of the first shard, or of the whole."""
    fields = json.loads((folder / MANIFEST).read_text())
    for name, value in values.items():
        (fields["shards"][0] if name in fields["shards"][0] else fields)[name] = value
    (folder / MANIFEST).write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "00001.tar").unlink(), "00001.tar is missing"),
        (lambda folder: (folder / "00001.tar").rename(folder / "renamed.tar"), "00001.tar is missing"),
        (
            lambda folder: write_tar(folder / "extra.tar", [("a.txt", b"a")]),
            "extra.tar is not in the folder's manifest",
        ),
        (lambda folder: (folder / "00002.tar").write_bytes(b""), "00002.tar has 0 bytes"),
        (
            lambda folder: os.truncate(folder / "00002.tar", 20480),
            "00002.tar has 20480 bytes, its manifest says 30720",
        ),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "no shards in .*data shapes"),
        (lambda folder: (folder / MANIFEST).rename(folder / "unfinished.json"), "never finished"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "manifest.json is damaged"),
        (lambda folder: (folder / MANIFEST).write_text("[" * 10**5), "manifest.json is damaged"),
        (lambda folder: put_into_manifest(folder, name=5), "is not a manifest of shards"),
        (lambda folder: put_into_manifest(folder, size="1"), "is not a manifest of shards"),
        (lambda folder: put_into_manifest(folder, samples=None), "is not a manifest of shards"),
        (lambda folder: put_into_manifest(folder, shards=None), "is not a manifest of shards"),
        (lambda folder: put_into_manifest(folder, made_by=None), "is not a manifest of shards"),
        (lambda folder: put_into_manifest(folder, sources=[1]), "is not a manifest of shards"),
        (lambda folder: [(folder / MANIFEST).unlink(), (folder / MANIFEST).mkdir()], "manifest.json cannot be read"),
        (lambda folder: (folder / "1.tar").mkdir(), "1.tar is no file"),
        (lambda folder: (folder / "1.tar").symlink_to("nowhere"), "1.tar is no file"),
        (lambda folder: (folder / "1.tar").symlink_to("1.tar"), "1.tar is no file"),
        (lambda folder: os.mkfifo(folder / "1.tar"), "1.tar is no file"),
    ],
)
def test_a_folder_that_differs_from_its_manifest_is_refused(image_shards, damage, message):
    ShardIndex.open(image_shards)
    damage(image_shards)
    with pytest.raises(DataError, match=message):
        ShardIndex.open(image_shards)


def test_no_folder_is_the_same_as_no_shards(tmp_path):
    with pytest.raises(DataError, match="no shards in .*nowhere"):
        ShardIndex.open(tmp_path / "nowhere")


def test_a_count_other_than_the_manifests_is_refused(image_shards):
    path = image_shards / MANIFEST
    fields = json.loads(path.read_text())
    fields["shards"][1]["samples"] += 1
    path.write_text(json.dumps(fields | {"total": 24}))
    with pytest.raises(DataError, match="00001.tar holds 7 samples, its manifest says 8"):
        ShardIndex.open(image_shards)


def test_a_shard_cut_while_in_use_is_named(image_shards):
    index = ShardIndex.open(image_shards)
    (image_shards / "00003.tar").write_bytes(b"")
    with pytest.raises(DataError, match="00003.tar ends at byte"):
        index.read(22)


def test_damaged_headers_never_lose_samples_silently(tmp_path, image_shards):
    """Wherever an adopted tar is cut or a block of it is emptied: every sample is there, or the tar is refused."""
    good = (image_shards / "00000.tar").read_bytes()
    content = good.rstrip(b"\0")
    refused = 0
    for block in range(0, len(content), 512):
        for damaged in (good[:block], good[: block + 100], good[:block] + bytes(512) + good[block + 512 :]):
            (tmp_path / "adopted").mkdir(exist_ok=True)
            (tmp_path / "adopted" / "a.tar").write_bytes(damaged)
            try:
                assert len(ShardIndex.open(tmp_path / "adopted")) == 7
            except DataError as error:
                assert "a.tar" in str(error)
                refused += 1
    assert refused > 2 * len(content) // 512  # every cut and every header


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_adopted_tars_of_any_dialect_are_read(tmp_path, format):
    long = "folder/" + "n" * 90 + "/" + "m" * 90
    names = ["./000", "a folder/0-1_2", long]
    entries = [(f"{name}.{suffix}", f"{name} {suffix}".encode()) for name in names for suffix in ("JPG", "txt", "cls")]
    write_tar(tmp_path / "x" / "any.tar", entries, format)
    index = ShardIndex.open(tmp_path / "x")
    assert [index.key(n) for n in range(3)] == ["000", "a folder/0-1_2", long]
    assert [index.read(n)["jpg"].decode() for n in range(3)] == [f"{name} JPG" for name in names]
    assert all(index.read(n).keys() == {"jpg", "txt"} for n in range(3))  # what has no known suffix is left alone


def test_links_devices_and_folders_are_skipped(tmp_path):
    entries = [
        special("d", tarfile.DIRTYPE),
        special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        special("b.txt", tarfile.LNKTYPE, "../../etc/passwd"),
        special("c.txt", tarfile.CHRTYPE),
        special("e.txt", tarfile.FIFOTYPE),
        ("f.txt", b"the only file"),
    ]
    write_tar(tmp_path / "x" / "a.tar", entries)
    index = ShardIndex.open(tmp_path / "x")
    assert [index.key(n) for n in range(len(index))] == ["f"]


@pytest.mark.parametrize(
    "name", ["../../evil.txt", "a/../b.txt", "a\nb.txt", "a;b.txt", "ünicode.txt", "n" * 257 + ".txt"]
)
def test_names_that_a_data_set_should_not_hold_are_refused(tmp_path, name):
    write_tar(tmp_path / "x" / "a.tar", [("good.txt", b""), (name, b"evil")], tarfile.PAX_FORMAT)
    before = listing(tmp_path)
    with pytest.raises(DataError, match="a.tar holds a member named"):
        ShardIndex.open(tmp_path / "x")
    assert listing(tmp_path) == before


def test_sizes_and_headers_beyond_all_bounds_are_refused(tmp_path):
    bomb = tarfile.TarInfo("a.txt")
    bomb.pax_headers = {"comment": "x" * 2_000_000}
    write_tar(tmp_path / "pax" / "a.tar", [bomb], tarfile.PAX_FORMAT)
    with pytest.raises(DataError, match="extended header"):
        ShardIndex.open(tmp_path / "pax")
    huge = tarfile.TarInfo("a.txt")
    huge.size = 1 << 60
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = write_tar(tmp_path / f"huge{format}" / "a.tar", [])
        path.write_bytes(huge.tobuf(format) + bytes(1024))
        with pytest.raises(DataError, match="cut off"):
            ShardIndex.open(path.parent)


def test_a_member_twice_is_refused_and_a_key_again_is_another_sample(tmp_path):
    write_tar(tmp_path / "x" / "a.tar", [("a.txt", b"1"), ("b.txt", b"2"), ("a.txt", b"3")])
    index = ShardIndex.open(tmp_path / "x")
    assert [index.read(n)["txt"] for n in range(3)] == [b"1", b"2", b"3"]
    write_tar(tmp_path / "y" / "a.tar", [("a.txt", b"1"), ("a.txt", b"2")])
    with pytest.raises(DataError, match="'a.txt' twice"):
        ShardIndex.open(tmp_path / "y")


def test_the_held_out_share_depends_on_keys_alone(tmp_path, image_shards, latent_shards):
    index = ShardIndex.open(image_shards)
    train, val = index.split(0.3)
    keys = [{part.key(n) for n in range(len(part))} for part in (train, val)]
    assert keys[0] | keys[1] == {f"{n:06d}" for n in range(23)} and not keys[0] & keys[1] and len(keys[1]) > 2
    np.testing.assert_array_equal(train.shard_sizes + val.shard_sizes, index.shard_sizes)
    assert len({index.fingerprint, train.fingerprint, val.fingerprint}) == 3
    assert all(val.read(n) == dict(image_samples(23))[val.key(n)] for n in range(len(val)))

    latents = ShardIndex.open(latent_shards).split(0.3)[1]
    assert {latents.key(n) for n in range(len(latents))} == keys[1]
    other = index.split(0.3, seed=1)[1]
    assert {other.key(n) for n in range(len(other))} != keys[1]
    inner_train, inner_val = train.split(0.5, seed=1)
    assert len(inner_train) + len(inner_val) == len(train)
    assert {inner_val.key(n) for n in range(len(inner_val))} < keys[0]


@pytest.mark.parametrize("holdout", [0.0, 1e-9, 1.0, 3.0, -1.0])
def test_a_share_that_leaves_nothing_is_refused(image_shards, holdout):
    with pytest.raises(ConfigError, match="leaves none for (training|validation)"):
        ShardIndex.open(image_shards).split(holdout)


def test_latents_of_another_vae_are_refused(image_shards, latent_shards):
    index = ShardIndex.open(latent_shards)
    assert index.kind == "latents"
    index.require_vae("abc")
    ShardIndex.open(image_shards).require_vae("anything")
    with pytest.raises(DataError, match=r"latents from another VAE \(abc\).*\(def\)"):
        index.require_vae("def")


def read_in_a_child(index: ShardIndex, results: multiprocessing.Queue) -> None:
    results.put([index.read(n) for n in range(len(index))])


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_read_the_same(image_shards, method):
    index = ShardIndex.open(image_shards).split(0.3)[1]
    here = [index.read(n) for n in range(len(index))]
    context = multiprocessing.get_context(method)
    results = context.Queue()
    child = context.Process(target=read_in_a_child, args=(index, results))
    child.start()
    assert results.get(timeout=300) == here
    child.join()


def test_only_the_members_that_are_wanted_are_read(image_shards):
    index = ShardIndex.open(image_shards)
    whole, part = index.read(0), index.read(0, only=("json", "txt"))
    assert part == {suffix: whole[suffix] for suffix in ("json", "txt")} and whole.keys() - part.keys() == {"png"}


def test_few_files_stay_open_and_none_travels(tmp_path):
    paths = [str(tmp_path / f"{n}") for n in range(9)]
    for path in paths:
        Path(path).write_text(path[-1] * 5)
    files = OpenFiles(limit=3)
    for path in [*paths, *paths[::-1]]:
        assert files.read(path, 1, 3) == path[-1].encode() * 3
        assert len(files._open) <= 3
    assert not pickle.loads(pickle.dumps(files))._open


def test_the_real_shards_are_adopted_without_touching_them(data_pack, cache):
    folder = data_pack("labelled-real")
    index = ShardIndex.open(folder)
    assert len(index) == 3781 and list(index.shard_sizes) == [1000, 1000, 1000, 781]
    assert index.kind == "images" and index.made_by == {}
    assert index.key(0) == "000000" and index.read(3780).keys() == {"jpg", "txt", "json"}
    assert not list(folder.glob("index-*")) and len(list(cache.glob("index-*.npy"))) == 1


def test_an_image_alone_is_a_sample(tmp_path):
    write_tar(tmp_path / "x" / "a.tar", [("README.md", b"text"), (".hidden.jpg", b""), ("a.png", encode(picture(0)))])
    assert len(ShardIndex.open(tmp_path / "x")) == 1


def test_a_folder_that_is_finished_while_it_is_opened_is_not_taken_for_one_without_a_manifest(
    image_shards, monkeypatch
):
    """Its samples would be known by another fingerprint, and no run on them could go on."""
    manifest, unfinished = image_shards / MANIFEST, image_shards / "unfinished.json"
    manifest.rename(unfinished)
    read = Manifest.read

    def too_early(folder):
        found = read(folder)
        if unfinished.exists():
            unfinished.rename(manifest)
        return found

    monkeypatch.setattr(Manifest, "read", too_early)
    with pytest.raises(DataError, match="never finished"):
        ShardIndex.open(image_shards)
    assert ShardIndex.open(image_shards).made_by == {"what": "noise"}

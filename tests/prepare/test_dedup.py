from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance
from tiny_shards import encode, latent_samples

from sdscratch.cli import main
from sdscratch.data.index import ShardIndex
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare.dedup import DUPLICATES, find_duplicates, keep_unique
from sdscratch.prepare.perceptual import groups, near


def landscape(number: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Soft random fields: unlike noise they keep their looks when they are scaled."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)


def sample(key: str, image: Image.Image, format: str = "PNG", **options: object):
    suffix = {"PNG": "png", "JPEG": "jpg"}[format]
    return key, {suffix: encode(image, format, **options), "txt": b"a picture"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [
        *(sample(f"a{n}", landscape(n)) for n in range(8)),
        sample("b-compressed", landscape(2), "JPEG", quality=30),
        sample("c-smaller", landscape(5, (48, 36))),
        sample("d-brighter", ImageEnhance.Brightness(landscape(5)).enhance(1.15)),
        ("e-broken", {"png": b"no picture", "txt": b"a"}),
    ]
    write_shards(tmp_path / "own", samples, {}, shard_size=5)
    return tmp_path / "own"


@pytest.mark.parametrize("workers", [0, 1])
def test_copies_that_were_scaled_compressed_or_brightened_are_found_and_others_are_not(folder, workers):
    found = find_duplicates(folder, workers=workers)
    pairs = {(d.key, d.of, d.folder) for d in found.duplicates}
    assert pairs == {
        (a, b, str(folder)) for a, b in (("b-compressed", "a2"), ("c-smaller", "a5"), ("d-brighter", "a5"))
    }
    assert all(d.distance <= 6 for d in found.duplicates)
    assert (found.samples, found.unreadable, len(found.kept)) == (12, 1, 9)


def test_what_another_folder_has_is_a_duplicate_even_where_it_is_the_only_one(folder, tmp_path):
    write_shards(tmp_path / "val", [sample("v", landscape(7), "JPEG", quality=60), sample("w", landscape(99))], {})
    found = find_duplicates(folder, [tmp_path / "val"])
    assert ("a7", "v", str(tmp_path / "val")) in {(d.key, d.of, d.folder) for d in found.duplicates}
    assert len(found.duplicates) == 4


def test_what_is_kept_opens_like_the_shards_themselves(folder, tmp_path):
    for _ in range(2):
        keep_unique(folder, tmp_path / "unique", find_duplicates(folder), 6)
    index = ShardIndex.open(tmp_path / "unique")
    assert [index.key(n) for n in range(len(index))] == [*(f"a{n}" for n in range(8)), "e-broken"]
    rows = list(csv.DictReader((tmp_path / "unique" / DUPLICATES).open()))
    assert [row["key"] for row in rows] == ["b-compressed", "c-smaller", "d-brighter"] and rows[0]["of"] == "a2"
    again = find_duplicates(tmp_path / "unique")
    assert not again.duplicates and again.samples == 9


def test_the_hash_of_a_record_is_believed_so_that_latents_can_be_compared(tmp_path):
    hashes = ["00000000000000ff", "00000000000000fe", "ffffffff00000000"]
    samples = [
        (key, members | {"json": json.dumps({"captions": ["a"], "phash": phash}).encode()})
        for (key, members), phash in zip(latent_samples(3), hashes, strict=True)
    ]
    write_shards(tmp_path / "latents", samples, {})
    assert [d.key for d in find_duplicates(tmp_path / "latents").duplicates] == ["000001"]
    write_shards(tmp_path / "bare", latent_samples(2), {})
    with pytest.raises(DataError, match="000000: its record has no phash"):
        find_duplicates(tmp_path / "bare")


@pytest.mark.parametrize("distance", [0, 1, 3, 6, 16])
def test_all_near_pairs_are_found_and_no_others(distance):
    rng = np.random.default_rng(distance)
    centres = rng.integers(0, 2**64, 40, dtype=np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (400, 10), dtype=np.uint64)
    cut = np.arange(10) < rng.integers(0, 11, (400, 1))
    hashes = np.unique(np.bitwise_xor.reduce(np.where(cut, flips, np.uint64(0)), axis=1) ^ rng.choice(centres, 400))
    bits = np.bitwise_count(hashes[:, None] ^ hashes[None])
    expected = np.argwhere((bits <= distance) & (np.arange(len(hashes))[:, None] < np.arange(len(hashes))))
    np.testing.assert_array_equal(near(hashes, distance), expected)
    assert len(expected) > 0 or distance == 0


def test_where_nothing_could_be_decoded_nothing_is_near():
    assert len(near(np.empty(0, np.uint64), 6)) == 0


def test_equal_hashes_and_chains_are_one_group():
    hashes = np.array([0b1111, 0, 0b0011, 0, 0xFFFF << 40], np.uint64)
    assert groups(hashes, 2).tolist() == [groups(hashes, 2)[0]] * 4 + [groups(hashes, 2)[4]]
    assert len(set(groups(hashes, 1))) == 4 and len(set(groups(hashes, 0))) == 4


def test_a_hundred_thousand_pictures_of_one_colour_take_no_time():
    assert len(set(groups(np.full(100_000, 7, np.uint64), 6))) == 1


def test_settings_that_make_no_sense_are_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match="distance is 40"):
        find_duplicates(folder, distance=40)
    with pytest.raises(DataError, match="no shards in"):
        find_duplicates(folder, [tmp_path / "nowhere"])


def test_the_verb_says_what_is_like_what(folder, tmp_path, capsys):
    assert main(["data", "dedup", f"path={folder}", f"out={tmp_path}/unique"]) == 0
    said = capsys.readouterr().out
    assert f"c-smaller is like a5 of {folder}" in said and "3 of 12 samples are duplicates: 3 of samples in" in said
    assert "1 could not be decoded" in said and said.endswith(f"{tmp_path}/unique: the 9 others\n")


def test_the_pack_holds_few_duplicates(data_pack_folder):
    photographs = ShardIndex.open(data_pack_folder)
    assert len(find_duplicates(data_pack_folder).duplicates) < 0.02 * len(photographs)


@pytest.fixture
def data_pack_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_pack: Callable[[str], Path]) -> Path:
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    native = data_pack("captions-real") / "train-native-00001.tar"
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / native.name).symlink_to(native)
    return tmp_path / "native"

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from tiny_shards import encode, image_samples, latent_samples, picture, record

from sdscratch.data.dataset import MAX_REPLACEMENTS, ShardDataset
from sdscratch.data.images import to_pil
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import pack, unpack
from sdscratch.data.order import Order, SequentialOrder
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError
from sdscratch.randomness import noise


def dataset(folder, *, sequential=False, seed=1, **options) -> ShardDataset:
    index = ShardIndex.open(folder)
    order = SequentialOrder(len(index)) if sequential else Order(index.shard_sizes, seed)
    return ShardDataset(index, order, seed, resolution=8, **options)


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], torch.Tensor) else a[k] == b[k] for k in a
    )


@pytest.mark.parametrize("kind", ["image_shards", "latent_shards"])
def test_a_sample_is_a_function_of_seed_and_position(request, kind):
    folder = request.getfixturevalue(kind)
    first = dataset(folder, random_crop=True, flip=True)
    expected = {position: first[position] for position in range(70)}
    again = dataset(folder, random_crop=True, flip=True)
    for position in np.random.default_rng(0).permutation(70):
        assert same(again[int(position)], expected[int(position)])
    other = dataset(folder, random_crop=True, flip=True, seed=2)
    assert not all(same(other[position], expected[position]) for position in range(70))


def test_each_epoch_draws_caption_crop_and_mirroring_anew(image_shards):
    samples = dataset(image_shards, sequential=True, random_crop=True, flip=True)
    draws = [samples[epoch * 23] for epoch in range(40)]
    assert {sample["key"] for sample in draws} == {"000000"} and {sample["source"] for sample in draws} == {"test"}
    assert {sample["caption"] for sample in draws} == {"0 in wording 0", "0 in wording 1"}
    assert len({sample["image"].numpy().tobytes() for sample in draws}) == 6  # 3 places of the crop x mirrored or not


def test_without_draws_the_picture_is_the_centre_of_the_stored_one(image_shards):
    sample = dataset(image_shards, sequential=True)[4]
    expected = picture(4).resize((8, 8), 1, box=(1, 0, 11, 10), reducing_gap=3.0)
    np.testing.assert_array_equal(np.asarray(to_pil(sample["image"])), np.asarray(expected))


def test_latents_are_drawn_from_their_moments_and_scaled(latent_shards):
    samples = dataset(latent_shards, sequential=True, flip=True, scaling_factor=0.5)
    flips = set()
    for position in range(4, 4 + 23 * 12, 23):
        mean, logvar = np.moveaxis(unpack(dict(latent_samples(5))["000004"]["latent.npy"]), 1, 0).astype(np.float32)
        expected = 0.5 * (mean + np.exp(0.5 * logvar) * noise(1, "vae", position, (4, 2, 2)).numpy())
        found = samples[position]["latents"]
        assert found.dtype == torch.float32 and found.shape == (4, 2, 2)
        [flip] = [f for f in (0, 1) if np.allclose(found, expected[f], atol=1e-6)]
        flips.add(flip)
    assert flips == {0, 1}


def bad_shards(tmp_path, kind):
    """23 samples of which number 5 is bad."""
    good = list(image_samples(23) if kind != "NaN latents" else latent_samples(23))
    key, members = good[5]
    array = torch.zeros(1, 2, 4, 2, 2).numpy().astype(np.float16)
    array[0, 0, 0, 0, 0] = np.nan
    bad = {
        "not an image": members | {"png": b"<html>"},
        "no image": {"json": members["json"]},
        "no caption": {"png": members.get("png", b""), "json": json.dumps({"captions": [" "]}).encode()},
        "NaN latents": members | {"latent.npy": latent_bytes(array)},
    }[kind]
    write_shards(tmp_path / "bad", [*good[:5], (key, bad), *good[6:]], {"what": kind}, shard_size=7)
    return tmp_path / "bad"


def latent_bytes(array: np.ndarray) -> bytes:
    good = pack(torch.zeros(array.shape))
    return good[: -array.nbytes] + array.tobytes()


KINDS = ["not an image", "no image", "no caption", "NaN latents"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_sample_stops_the_run_by_name(tmp_path, kind):
    reason = {"not an image": "none of JPEG, PNG, WEBP", "NaN latents": "NaN"}.get(kind, kind)
    samples = dataset(bad_shards(tmp_path, kind), sequential=True)
    samples[4], samples[6]
    with pytest.raises(DataError, match=f"00000.tar: 000005 is a bad sample.*{reason}.*on_bad=quarantine") as error:
        samples[5]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_quarantined_sample_is_replaced_by_the_same_one_every_time(tmp_path, kind):
    folder = bad_shards(tmp_path, kind)
    samples = dataset(folder, sequential=True, on_bad="quarantine")
    epoch = [samples[position] for position in range(23)]
    assert [sample["key"] for sample in epoch if sample["quarantined"]] == [epoch[5]["key"]] != ["000005"]
    assert epoch[5]["quarantined"] == ["000005"] and epoch[5]["position"] == 5
    assert same(dataset(folder, sequential=True, on_bad="quarantine")[5], epoch[5])
    replacements = {samples[5 + 23 * k]["key"] for k in range(30)}
    assert len(replacements) > 10 and "000005" not in replacements


def test_a_folder_of_bad_samples_stops_even_under_quarantine(tmp_path):
    write_shards(tmp_path / "bad", [(f"{n}", {"png": b"", "json": record(n)}) for n in range(9)], {})
    with pytest.raises(DataError, match=f"bad sample.*{MAX_REPLACEMENTS} replacements were bad as well"):
        dataset(tmp_path / "bad", on_bad="quarantine")[0]


def test_an_unknown_policy_is_refused(image_shards):
    with pytest.raises(ConfigError, match="on_bad='skip'"):
        dataset(image_shards, on_bad="skip")


def test_moments_survive_the_disk_and_anything_else_is_refused():
    moments = torch.randn(1, 2, 4, 3, 5)
    np.testing.assert_array_equal(unpack(pack(moments)), moments.numpy().astype(np.float16))
    for wrong in (moments * 1e6, moments * float("nan"), moments[0], moments.repeat(1, 2, 1, 1, 1), moments[:0]):
        with pytest.raises(DataError, match="its latents"):
            pack(wrong)
    good = pack(moments)
    for damaged in (b"", b"PK\x03\x04", good[:60], good[:-1], encode(picture(0)), b"\x80\x04K\x01."):
        with pytest.raises(DataError, match="its latents"):
            unpack(damaged)


def test_latents_with_a_huge_claimed_shape_are_refused():
    good = pack(torch.zeros(1, 2, 4, 8, 8))
    with pytest.raises(DataError, match="its latents"):
        unpack(
            good.replace(b"(1, 2, 4, 8, 8), }", b"(1, 2,4,8,9**9), }").replace(b"(1, 2, 4, 8, 8)", b"(99999999999,2)")
        )

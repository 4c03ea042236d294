"""Encoding image shards into latent shards."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sdscratch.data.images import preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import unpack
from sdscratch.data.manifest import MANIFEST
from sdscratch.data.shards import Members, write_shards
from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.models import new_vae
from sdscratch.models.encoders import fingerprint
from sdscratch.prepare.encode import QUARANTINED, Encoder

VAE = {
    "block_out_channels": (8, 8, 8),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "sample_size": 16,
}


def picture(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
    return file.getvalue()


def samples(count: int, bad: tuple[int, ...] = ()) -> Iterator[tuple[str, Members]]:
    for n in range(count):
        image = b"no picture" if n in bad else picture(n)
        yield f"{n:04d}", {"png": image, "json": json.dumps({"captions": [f"number {n}"], "source": "test"}).encode()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".json", ".txt")}


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return new_vae(
        block_out_channels=(8, 8, 8), layers_per_block=1, latent_channels=4, norm_num_groups=4, sample_size=16
    ).eval()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """21 images of 24 x 20 pixels in shards of 8, 8 and 5."""
    write_shards(tmp_path / "images", samples(21), {"what": "noise"}, shard_size=8)
    return tmp_path / "images"


def test_latents_are_the_raw_moments_of_the_centre_crop_and_captions_go_along(vae, source, tmp_path):
    manifest = Encoder(vae, 16, batch_size=8).write(source, tmp_path / "out")
    index = ShardIndex.open(tmp_path / "out")
    assert (manifest.kind, manifest.total, len(index)) == ("latents", 21, 21)
    for n in (0, 7, 20):
        members = index.read(n)
        with torch.no_grad():
            posterior = vae.encode(preprocess(picture(n), 16)[None]).latent_dist
        expected = torch.stack([posterior.mean[0], posterior.logvar[0]])[None].half().numpy()
        np.testing.assert_allclose(unpack(members["latent.npy"]), expected, atol=2e-3)
        assert unpack(members["latent.npy"]).shape == (1, 2, 4, 4, 4)
        assert index.key(n) == f"{n:04d}" and json.loads(members["json"])["captions"] == [f"number {n}"]
        assert set(members) == {"latent.npy", "json"}


def test_flips_are_the_latents_of_the_mirrored_picture(vae, source, tmp_path):
    Encoder(vae, 16, flips=True).write(source, tmp_path / "out")
    moments = unpack(ShardIndex.open(tmp_path / "out").read(3)["latent.npy"])
    with torch.no_grad():
        mirrored = vae.encode(preprocess(picture(3), 16, flip=True)[None]).latent_dist.mean[0]
    assert moments.shape == (2, 2, 4, 4, 4)
    np.testing.assert_allclose(moments[1, 0], mirrored.numpy(), atol=2e-3)


def test_the_manifest_says_what_the_latents_were_made_by(vae, source, tmp_path):
    made_by = Encoder(vae, 16).write(source, tmp_path / "out").made_by
    fields = {"by": "encode", "vae": fingerprint(vae), "resolution": 16, "flips": False, "source": {"what": "noise"}}
    assert made_by == {**fields, "source_fingerprint": ShardIndex.open(source).fingerprint}


def test_a_second_call_encodes_nothing_and_a_fresh_one_gives_the_same_bytes(vae, source, tmp_path):
    Encoder(vae, 16).write(source, tmp_path / "out")
    before = contents(tmp_path / "out")
    calls: list[int] = []
    Encoder(vae, 16, progress=lambda done, total: calls.append(done)).write(source, tmp_path / "out")
    assert calls == [] and contents(tmp_path / "out") == before
    Encoder(vae, 16, progress=lambda done, total: calls.append(done)).write(source, tmp_path / "again")
    assert calls == [21] and contents(tmp_path / "again") == before


def test_an_encoding_that_failed_half_way_starts_again(vae, source, tmp_path):
    def fail(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Encoder(vae, 16, batch_size=4, progress=fail).write(source, tmp_path / "out")
    with pytest.raises(DataError, match="was never finished"):
        ShardIndex.open(tmp_path / "out")
    Encoder(vae, 16, batch_size=4).write(source, tmp_path / "out")
    Encoder(vae, 16, batch_size=4).write(source, tmp_path / "fresh")
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_bad_picture_stops_the_encoding_and_is_named(vae, tmp_path):
    write_shards(tmp_path / "images", samples(9, bad=(5,)), {}, shard_size=4)
    with pytest.raises(
        DataError, match=r"images/00001.tar: 0005 is a bad sample: the image is none of JPEG.*quarantine"
    ):
        Encoder(vae, 16).write(tmp_path / "images", tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_bad_pictures_in_quarantine_are_left_out_counted_and_named(vae, tmp_path):
    write_shards(tmp_path / "images", samples(9, bad=(0, 4, 5)), {}, shard_size=4)
    encoder = Encoder(vae, 16, on_bad="quarantine", batch_size=2)
    manifest = encoder.write(tmp_path / "images", tmp_path / "out")
    index = ShardIndex.open(tmp_path / "out")
    assert manifest.total == 6 and [index.key(n) for n in range(6)] == ["0001", "0002", "0003", "0006", "0007", "0008"]
    named = (tmp_path / "out" / QUARANTINED).read_text().splitlines()
    assert named == encoder.bad and len(named) == 3 and "00000.tar: 0000 is a bad sample" in named[0]


def test_nothing_but_bad_pictures_is_refused(vae, tmp_path):
    write_shards(tmp_path / "images", samples(3, bad=(0, 1, 2)), {})
    with pytest.raises(DataError, match="nothing to write"):
        Encoder(vae, 16, on_bad="quarantine").write(tmp_path / "images", tmp_path / "out")


def test_latents_that_are_not_finite_are_refused(vae, source, tmp_path):
    broken = new_vae(**VAE)
    torch.nn.init.constant_(broken.quant_conv.bias, float("nan"))
    with pytest.raises(DataError, match="00000.tar: 0000 is not encoded by this VAE: its latents hold NaN"):
        Encoder(broken, 16).write(source, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolution": 18}, "resolution=18 is not divisible by the VAE's factor 4. Set it to 16 or 20"),
        ({"resolution": 0}, "resolution is 0"),
        ({"on_bad": "ignore"}, "on_bad='ignore' is unknown; expected fail or quarantine"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(vae, settings, said):
    with pytest.raises(ConfigError, match=said):
        Encoder(vae, **{"resolution": 16, **settings})


def test_folders_that_do_not_fit_are_refused(vae, source, tmp_path):
    with pytest.raises(DataError, match="no shards in"):
        Encoder(vae, 16).write(tmp_path / "nowhere", tmp_path / "out")
    Encoder(vae, 16).write(source, tmp_path / "out")
    with pytest.raises(DataError, match="holds latents already"):
        Encoder(vae, 16).write(tmp_path / "out", tmp_path / "twice")
    with pytest.raises(DataError, match="made with other settings .they differ in resolution"):
        Encoder(vae, 12).write(source, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError):
        Encoder(vae, 16).write(source, tmp_path / "file" / "out")

"""Encoding image shards into latent shards."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from sdscratch.data.captions import captions_of
from sdscratch.data.images import preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import unpack
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import DROPPED, UNFINISHED, Members, write_shards
from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import new_clip, new_vae
from sdscratch.models.encoders import fingerprint, load_text_encoder, load_vae
from sdscratch.prepare.encode.encoder import Encoder
from sdscratch.prepare.encode.encoding import Encoding

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
        captions = [f"number {n}", f"{n} it is"][: n % 3]
        yield f"{n:04d}", {"png": image, "json": json.dumps({"captions": captions, "source": "test"}).encode()}


def contents(folder: Path) -> dict[str, bytes]:
    """Shards, manifest and what was dropped; the index of byte offsets appears when somebody reads."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix in (".tar", ".json", ".jsonl")}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a VAE and a text encoder, tiny and random."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model") / "model"
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    text = new_clip(["number 1", "2 it is"], **sizes, vocab_size=600, max_length=8)
    save_model_folder(folder, vae=new_vae(**VAE), text=text, about={})
    return folder


@pytest.fixture(scope="module")
def vae(model):
    return load_vae(str(model)).eval()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """21 images of 24 x 20 pixels in shards of 8, 8 and 5."""
    write_shards(tmp_path / "images", samples(21), {"what": "noise"}, shard_size=8)
    return tmp_path / "images"


@pytest.fixture
def encoding(model, source, tmp_path) -> Callable[..., Encoding]:
    """`encoding(out="x", flips=True, ...)`: of the source with the model, at 16 px."""

    def make(out: str = "out", **settings: object) -> Encoding:
        settings = {"source": source, "vae": str(model), "resolution": 16, "batch_size": 3, **settings}
        return Encoding(out=tmp_path / out, **settings)  # type: ignore[arg-type]

    return make


def test_latents_are_the_raw_moments_of_the_centre_crop_and_captions_go_along(vae, encoding, tmp_path):
    manifest, _ = encoding().run()
    index = ShardIndex.open(tmp_path / "out")
    assert (manifest.kind, manifest.total, len(index)) == ("latents", 21, 21)
    for n in (0, 7, 20):
        members = index.read(n)
        with torch.no_grad():
            posterior = vae.encode(preprocess(picture(n), 16)[None]).latent_dist
        expected = torch.stack([posterior.mean[0], posterior.logvar[0]])[None].half().numpy()
        np.testing.assert_allclose(unpack(members["latent.npy"]), expected, atol=2e-3)
        assert unpack(members["latent.npy"]).shape == (1, 2, 4, 4, 4)
        assert index.key(n) == f"{n:04d}" and set(members) == {"latent.npy", "json"}
        assert members["json"] == dict(samples(21))[f"{n:04d}"]["json"]


def test_each_shard_of_the_source_gives_one_of_the_same_name(encoding, source, tmp_path):
    (source / "00001.tar").rename(source / "more-00001.tar")  # as others name them
    (source / MANIFEST).unlink()
    manifest, _ = encoding().run()
    assert [(shard.name, shard.samples) for shard in manifest.shards] == [
        ("00000.tar", 8), ("00002.tar", 5), ("more-00001.tar", 8)
    ]  # fmt: skip


def test_flips_are_the_latents_of_the_mirrored_picture(vae, encoding, tmp_path):
    encoding(flips=True).run()
    moments = unpack(ShardIndex.open(tmp_path / "out").read(3)["latent.npy"])
    with torch.no_grad():
        mirrored = vae.encode(preprocess(picture(3), 16, flip=True)[None]).latent_dist.mean[0]
    assert moments.shape == (2, 2, 4, 4, 4)
    np.testing.assert_allclose(moments[1, 0], mirrored.numpy(), atol=2e-3)


def test_text_states_are_those_of_every_caption_in_their_sequence(model, encoding, tmp_path):
    manifest, _ = encoding(text=str(model)).run()
    index, text = ShardIndex.open(tmp_path / "out"), load_text_encoder([], str(model))
    assert manifest.made_by["text"] == text.fingerprint
    for n in range(21):
        members = index.read(n)
        captions = captions_of(members, json.loads(members["json"]))
        assert len(captions) == n % 3 and ("text.npy" in members) == bool(captions)
        if captions:
            states = np.load(io.BytesIO(members["text.npy"]), allow_pickle=False)
            assert states.dtype == np.float16 and states.shape == (n % 3, 8, 8)
            np.testing.assert_allclose(states, text(captions).numpy(), atol=2e-3)


def test_the_manifest_says_what_the_latents_were_made_by(vae, source, encoding):
    made_by = encoding().run()[0].made_by
    fields = {"by": "encode", "vae": fingerprint(vae), "text": None, "resolution": 16, "crop": "centre", "flips": False}
    fields |= {"dtype": "float32", "source": {"what": "noise"}}
    assert made_by == {**fields, "source_fingerprint": ShardIndex.open(source).fingerprint}


def test_a_vae_that_was_trained_again_in_the_same_folder_is_another_one(encoding, tmp_path):
    made_by = list[dict]()
    for out in ("one", "two"):
        save_model_folder(tmp_path / "again", vae=new_vae(**VAE), about={})
        made_by.append(encoding(out, vae=str(tmp_path / "again")).run()[0].made_by)
    assert made_by[0]["vae"] != made_by[1]["vae"]


def test_a_second_call_encodes_nothing_and_a_fresh_one_gives_the_same_bytes(encoding, tmp_path):
    encoding().run()
    before, calls = contents(tmp_path / "out"), list[tuple[int, int]]()
    assert encoding().run(progress=lambda *call: calls.append(call))[1] is None
    assert calls == [] and contents(tmp_path / "out") == before
    encoding("again").run(progress=lambda *call: calls.append(call))
    assert calls == [(8, 21), (16, 21), (21, 21)] and contents(tmp_path / "again") == before


def test_in_processes_and_with_any_number_of_threads_the_bytes_are_the_same(encoding, tmp_path):
    """Each process imports torch, which takes seconds."""
    encoding(threads=3).run()
    _, quality = encoding("apart", threads=1).run(workers=2)
    assert quality is not None and contents(tmp_path / "apart") == contents(tmp_path / "out")


def test_an_encoding_that_failed_half_way_goes_on_with_the_shards_that_are_missing(encoding, tmp_path):
    def fail(done: int, total: int) -> None:
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoding().run(progress=fail)
    with pytest.raises(DataError, match="was never finished"):
        ShardIndex.open(tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    assert len(times) == 2 and (tmp_path / "out" / UNFINISHED).exists()
    calls = list[tuple[int, int]]()
    encoding().run(progress=lambda *call: calls.append(call))
    encoding("fresh").run()
    assert calls == [(21, 21)] and times == {path: path.stat().st_mtime_ns for path in times}
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def bad_source(folder: Path, *bad: int) -> Path:
    write_shards(folder / "bad", samples(9, bad), {}, shard_size=4)
    return folder / "bad"


def test_a_bad_picture_stops_the_encoding_and_is_named(encoding, tmp_path):
    with pytest.raises(DataError, match=r"bad/00001.tar: 0005 is a bad sample: the image is none of JPEG.*quarantine"):
        encoding(source=bad_source(tmp_path, 5)).run()
    assert not (tmp_path / "out" / MANIFEST).exists()


def test_bad_pictures_in_quarantine_are_left_out_counted_and_named(encoding, tmp_path):
    source = bad_source(tmp_path, 0, 4, 5)
    manifest, _ = encoding(source=source, on_bad="quarantine", batch_size=2).run()
    index = ShardIndex.open(tmp_path / "out")
    assert manifest.dropped == {"not decodable": 3}
    assert manifest.total + sum(manifest.dropped.values()) == Manifest.read(source).total
    assert [index.key(n) for n in range(6)] == ["0001", "0002", "0003", "0006", "0007", "0008"]
    named = [json.loads(line) for line in (tmp_path / "out" / DROPPED).read_text().splitlines()]
    assert [drop["key"] for drop in named] == ["0000", "0004", "0005"]
    assert named[0]["reason"] == "not decodable" and "none of JPEG" in named[0]["detail"]


def test_a_job_that_a_bad_picture_stopped_goes_on_without_it(encoding, tmp_path):
    source = bad_source(tmp_path, 8)
    with pytest.raises(DataError, match="0008 is a bad sample"):
        encoding(source=source).run()
    calls = list[tuple[int, int]]()
    encoding(source=source, on_bad="quarantine").run(progress=lambda *call: calls.append(call))
    assert calls == [(9, 9)]


def test_a_shard_of_nothing_but_bad_pictures_leaves_none_and_a_folder_of_them_is_refused(encoding, tmp_path):
    manifest, _ = encoding(source=bad_source(tmp_path, 4, 5, 6, 7), on_bad="quarantine").run()
    assert [shard.name for shard in manifest.shards] == ["00000.tar", "00002.tar"] and manifest.total == 5
    write_shards(tmp_path / "images3", samples(3, bad=(0, 1, 2)), {})
    with pytest.raises(DataError, match="nothing to write.*3"):
        encoding("none", source=tmp_path / "images3", on_bad="quarantine").run()


def test_a_damaged_source_shard_is_named_even_where_every_picture_decodes(encoding, source, tmp_path):
    encoding("before").run()  # which leaves the byte offsets
    entry = ShardIndex.open(source).entries[10]
    with (source / "00001.tar").open("r+b") as file:
        file.seek(int(entry["json offset"]) + 17)
        file.write(b"X")
    with pytest.raises(DataError, match=r"images/00001.tar is damaged: its sha256 is not that of the manifest"):
        encoding().run()


def test_latents_that_are_not_finite_are_refused(vae, encoding, tmp_path):
    broken = new_vae(**VAE)
    torch.nn.init.constant_(broken.quant_conv.bias, float("inf"))
    save_model_folder(tmp_path / "broken", vae=broken, about={})
    said = r"images/00000.tar: 0000 is not encoded by this VAE in float32: its latents hold NaN"
    with pytest.raises(DataError, match=said):
        encoding(vae=str(tmp_path / "broken")).run()


def test_the_quality_is_that_of_pictures_decoded_again(vae, encoding):
    _, quality = encoding().run()
    images = torch.stack([preprocess(picture(n), 16) for n in range(8)])
    with torch.no_grad():
        again = vae.decode(vae.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    expected = -10 * np.log10(((again - images) / 2).square().mean().item())
    assert quality.psnr == pytest.approx(expected, abs=1e-3) and quality.error == 0


def test_bfloat16_is_measured_against_float32_and_is_another_encoding(encoding, tmp_path):
    _, quality = encoding(dtype="bfloat16").run()
    assert 1e-4 < quality.error < 0.02
    with pytest.raises(DataError, match="made with other settings .they differ in dtype"):
        encoding().run()


def test_a_vae_that_does_not_bear_bfloat16_is_refused_in_it(encoding, tmp_path):
    """One that takes small differences of large numbers."""
    delicate = new_vae(**VAE)
    with torch.no_grad():
        delicate.encoder.conv_out.bias += 1000
        delicate.quant_conv.weight.copy_(torch.eye(8)[:, :, None, None])
        delicate.quant_conv.bias.fill_(-1000)
    save_model_folder(tmp_path / "delicate", vae=delicate, about={})
    settings = {"vae": str(tmp_path / "delicate")}
    assert encoding("exact", **settings).run()[0].total == 21
    with pytest.raises(DataError, match=r"in bfloat16 the latents of this VAE are .* away.*Set dtype=float32"):
        encoding(dtype="bfloat16", **settings).run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"resolution": 18}, "resolution=18 is not divisible by the VAE's factor 4. Set it to 16 or 20"),
        ({"resolution": 0}, "resolution is 0"),
        ({"on_bad": "ignore"}, "on_bad='ignore' is unknown; expected fail or quarantine"),
        ({"dtype": "float16"}, "dtype='float16' is unknown; expected float32 or bfloat16"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"threads": 0}, "threads is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(encoding, settings, said):
    with pytest.raises(ConfigError, match=said):
        encoding(**settings).run()


def test_folders_that_do_not_fit_are_refused(encoding, source, tmp_path):
    with pytest.raises(DataError, match="no shards in"):
        encoding(source=tmp_path / "nowhere").run()
    encoding().run()
    with pytest.raises(DataError, match="holds latents already"):
        encoding("twice", source=tmp_path / "out").run()
    with pytest.raises(DataError, match="made with other settings .they differ in resolution"):
        encoding(resolution=12).run()
    write_shards(tmp_path / "others", samples(20), {"what": "noise"}, shard_size=8)
    with pytest.raises(DataError, match="made with other settings .they differ in source_fingerprint"):
        encoding(source=tmp_path / "others").run()
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError):
        encoding("file/out").run()


def test_a_cpu_takes_few_large_pictures_at_once_and_many_small_ones(vae):
    encoder = Encoder(vae, None, "float32")
    sizes = list[tuple[int, ...]]()
    hook = vae.encoder.register_forward_pre_hook(lambda network, inputs: sizes.append(tuple(inputs[0].shape)))
    for side in (16, 128, 256):
        assert encoder.moments(torch.zeros(3, 3, side, side)).shape == (3, 1, 2, 4, side // 4, side // 4)
    hook.remove()
    assert sizes == [(3, 3, 16, 16), (2, 3, 128, 128), (1, 3, 128, 128), *[(1, 3, 256, 256)] * 3]


def test_a_compiled_vae_says_the_same_of_every_batch_and_is_compiled_once(model, vae):
    images = torch.stack([preprocess(picture(n), 16) for n in range(7)])
    expected = Encoder(vae, None, "float32").moments(images, flips=True)
    torch._dynamo.reset()
    counters.clear()
    encoder = Encoder(load_vae(str(model)).eval(), None, "float32").compiled(4, backend="eager")
    for some in (images, images[:3], images[:1]):
        torch.testing.assert_close(encoder.moments(some, flips=True), expected[: len(some)], rtol=1e-4, atol=1e-4)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    assert encoder.quality(images).error == pytest.approx(0, abs=1e-5)
    torch._dynamo.reset()


def test_it_is_compiled_where_there_is_a_gpu_and_enough_to_do(encoding):
    assert [encoding(device=device)._compiles(20_000) for device in ("cpu", "cuda", "cuda:1")] == [False, True, True]
    assert not encoding(device="cuda")._compiles(19_999) and not encoding(device="cuda", compile="no")._compiles(10**9)
    assert encoding(compile="yes")._compiles(1)

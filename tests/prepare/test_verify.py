from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_shards import encode, image_samples, latent_samples, picture, record

from sdscratch.cli import main
from sdscratch.data import latents
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import BAD, DROPPED, UNFINISHED, Dropped, write_shards
from sdscratch.errors import DataError
from sdscratch.prepare.moments import Moments
from sdscratch.prepare.pack.adopt import Tars
from sdscratch.prepare.select import select
from sdscratch.prepare.verify import verify


@pytest.fixture
def images(tmp_path: Path) -> Path:
    write_shards(tmp_path / "images", [*image_samples(23), Dropped("gone", "404")], {}, shard_size=7)
    return tmp_path / "images"


@pytest.fixture
def latent(tmp_path: Path) -> Path:
    write_shards(tmp_path / "latents", latent_samples(23), {"vae": "abc"}, shard_size=7)
    return tmp_path / "latents"


def said(folder: Path, **how) -> list[str]:
    return [str(problem) for problem in verify(folder, **how).problems]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_whole_folder_has_no_problems_and_its_samples_are_counted(images, workers):
    verdict = verify(images, workers=workers)
    assert (verdict.shards, verdict.samples, verdict.dropped, verdict.std, verdict.problems) == (4, 23, 1, None, [])


def test_the_standard_deviation_of_latents_is_that_of_draws_from_them(latent):
    found = verify(latent)
    moments = [latents.unpack(members["latent.npy"]) for _, members in latent_samples(23)]
    rng = np.random.default_rng(0)
    draws = np.stack([[latents.draw(m, 0, rng.standard_normal(m.shape[2:])) for m in moments] for _ in range(400)])
    about_channels = draws - draws.mean((0, 1, 3, 4), keepdims=True)
    assert found.std == pytest.approx(about_channels.std(), rel=0.02) and not found.problems


def test_moments_add_up_and_refuse_another_shape():
    samples = np.random.default_rng(0).standard_normal((6, 1, 2, 3, 4, 4))
    whole, halves = Moments(), [Moments(), Moments()]
    for n, sample in enumerate(samples):
        whole.add(sample)
        halves[n % 2].add(sample)
    assert (halves[0] + halves[1]).std == pytest.approx(whole.std, rel=1e-12) and whole.samples == 6
    with pytest.raises(DataError, match="its latents are of .3, 2, 2., those before of .3, 4, 4."):
        whole.add(samples[0, :, :, :, :2, :2])


def test_what_is_missing_or_too_much_is_named(images):
    (images / "00001.tar").unlink()
    shutil.copy(images / "00000.tar", images / "00009.tar")
    (images / DROPPED).unlink()
    problems = said(images)
    assert problems[0] == "00009.tar: it is not in the manifest"
    assert "00001.tar: it cannot be read: No such file or directory" in problems
    assert f"{DROPPED}: it names 0 samples, the manifest counts 1 that were dropped" in problems


def test_samples_that_cannot_be_trained_on_are_named(tmp_path):
    good = dict(image_samples(6))
    bad = {
        "000001": {"png": b"no picture", "txt": b"a"},
        "000002": {"txt": b"no picture at all"},
        "000003": {"png": encode(picture(3)), "txt": b" "},
        "000004": {"png": encode(picture(4))[:-60], "txt": b"cut off"},
    }
    write_shards(tmp_path / "bad", (good | bad).items(), {})
    problems = said(tmp_path / "bad")
    assert [problem.split(": ")[:2] for problem in problems] == [["00000.tar", key] for key in sorted(bad)]
    for problem, words in zip(problems, ("none of JPEG", "no image", "no caption", "cannot be decoded"), strict=True):
        assert words in problem
    assert len(said(tmp_path / "bad", decode=False)) == 2, "without decoding a picture is taken for granted"


def test_latents_of_another_shape_spread_or_with_nan_are_named(tmp_path):
    def scaled(number: int, factor: float, size: int = 2) -> dict[str, bytes]:
        moments = np.random.default_rng(number).standard_normal((1, 2, 4, size, size)) * factor
        return {"latent.npy": latents.pack(moments), "json": record(number)}

    samples = {f"{n:02d}": scaled(n, 4.0 if 4 <= n < 8 else 1.0, 3 if 8 <= n < 12 else 2) for n in range(20)}
    samples["13"] |= {"latent.npy": samples["13"]["latent.npy"][:-2] + b"\x00\x7e"}
    write_shards(tmp_path / "out", samples.items(), {}, shard_size=4)
    problems = said(tmp_path / "out")
    assert len(problems) == 3
    assert problems[0] == "00003.tar: 13: its latents hold NaN or infinite values, or none"
    assert problems[1].startswith("00001.tar: its latents have a standard deviation of ")
    assert problems[2] == "00002.tar: its latents are of (4, 3, 3), most shards' of (4, 2, 2)"


def test_captions_states_that_cannot_be_trained_on_are_named(tmp_path):
    def states(captions: int = 2, length: int = 3, dtype: str = "float16") -> bytes:
        np.save(file := io.BytesIO(), np.zeros((captions, length, 4), dtype), allow_pickle=False)
        return file.getvalue()

    samples = {key: members | {"text.npy": states()} for key, members in latent_samples(12)}
    write_shards(tmp_path / "good", samples.items(), {"text": "abc"}, shard_size=4)
    assert not said(tmp_path / "good")
    samples["000001"]["text.npy"] = states(captions=1)
    samples["000002"]["text.npy"] = states()[:-2] + b"\x00\x7e"
    samples["000003"]["text.npy"] = states()[:-8]
    samples["000005"]["text.npy"] = states(dtype="float32")
    samples["000006"]["text.npy"] = states(length=2)
    del samples["000007"]["text.npy"]
    samples |= {f"{n:06d}": samples[f"{n:06d}"] | {"text.npy": states(length=7)} for n in range(8, 12)}
    write_shards(tmp_path / "bad", samples.items(), {"text": "abc"}, shard_size=4)
    assert said(tmp_path / "bad") == [
        "00000.tar: 000001: its captions' states are float16 (1, 3, 4), expected float16 (2, T, D)",
        "00000.tar: 000002: its captions' states hold NaN or infinite values",
        "00000.tar: 000003: its captions' states cannot be read (ValueError)",
        "00001.tar: 000005: its captions' states are float32 (2, 3, 4), expected float16 (2, T, D)",
        "00001.tar: 000006: its captions' states are of (2, 4), those before of (3, 4)",
        "00001.tar: 000007: it has no captions' states",
        "00002.tar: its captions' states are of (7, 4), most shards' of (3, 4)",
    ]


def test_a_key_in_two_shards_is_named(tmp_path):
    samples = list(image_samples(4))
    write_shards(tmp_path / "out", [*samples, samples[1]], {}, shard_size=4)
    assert said(tmp_path / "out") == ["00001.tar: 000001: this key is in 00000.tar already"]


def test_a_folder_without_a_manifest_is_refused(tmp_path, images):
    (images / MANIFEST).unlink()
    with pytest.raises(DataError, match="no manifest.json.*data pack kind=webdataset"):
        verify(images)
    (images / UNFINISHED).touch()
    with pytest.raises(DataError, match="was never finished"):
        verify(images)
    with pytest.raises(DataError, match="there is no folder .*nowhere"):
        verify(tmp_path / "nowhere")


def test_bad_samples_that_were_named_when_their_tars_were_adopted_are_no_damage(tmp_path):
    good = dict(image_samples(4))
    write_shards(tmp_path, (good | {"000002": {"png": b"no picture", "txt": b"a"}}).items(), {})
    (tmp_path / MANIFEST).unlink()
    Tars(tmp_path).adopt(on_bad="quarantine")
    verdict = verify(tmp_path)
    assert (verdict.problems, verdict.samples, verdict.known_bad) == ([], 4, 1)
    assert main(["data", "verify", f"path={tmp_path}"]) == 0
    (tmp_path / BAD).unlink()
    assert said(tmp_path)[0].startswith("00000.tar: 000002: the image is none of")
    (tmp_path / BAD).write_text("[]\n")
    with pytest.raises(DataError, match="bad.jsonl is damaged"):
        verify(tmp_path)


def test_of_a_selection_the_folder_it_selects_from_is_read(images, tmp_path):
    select(images, tmp_path / "some", "key < '000009'")
    assert verify(tmp_path / "some").samples == 23
    data = bytearray((images / "00000.tar").read_bytes())
    data[700] ^= 1
    (images / "00000.tar").write_bytes(data)
    assert any(problem.startswith("00000.tar") for problem in said(tmp_path / "some"))


def test_the_verb_ends_with_2_and_the_shards_name_and_needs_no_torch(images, tmp_path):
    code = (
        "import sys; from sdscratch.cli import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    words = [sys.executable, "-c", code, "data", "verify", f"path={images}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "23 samples in 4 shards are whole, 1 fell" in done.stdout
    with open(images / "00002.tar", "r+b") as file:
        file.truncate(2000)
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "00002.tar: it is cut off" in done.stdout
    assert done.stderr.count("\n") == 1 and "is not as it was written: 00002.tar. Restore" in done.stderr


def test_what_a_manifest_says_it_dropped_counts_as_delivered(images):
    manifest, lines = Manifest.read(images), (images / DROPPED).read_text().splitlines()
    assert manifest.total + sum(manifest.dropped.values()) == 24 == verify(images).samples + len(lines)
    assert json.loads(lines[0]) == {"key": "gone", "reason": "404", "detail": ""}

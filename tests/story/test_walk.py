"""The whole way, as a user walks it on the command line: scenes, VAE, CLIP, latents, UNet, pictures. Tiny, and in seconds."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from sdscratch.cli import main
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import unpack
from sdscratch.data.shards import write_shards
from sdscratch.models.encoders import fingerprint, load_vae
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

pytestmark = [
    pytest.mark.xdist_group("walk"),  # the walk is long enough to be done once
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # inside diffusers
]

PROMPTS = ["a red circle in the centre on a white background", "top: a blue ring, black background"]
STEPS = 4
SMALL = (
    "trainer=cpu",
    "logger=none",
    "threads=1",
    f"max_steps={STEPS}",
    "global_batch_size=4",
    "lr_schedule.warmup_steps=1",
    "dataset.resolution=32",
    "callbacks.previews=null",
    "callbacks.plots=null",
)


class Walk(NamedTuple):
    """Where everything lies. run: call `sdscratch` with the runs in `runs`."""

    runs: Path
    scenes: Path
    latents: Path
    run: Callable[..., int]

    def train(self, name: str, *overrides: str) -> int:
        return self.run("train", f"name={name}", *SMALL, *overrides)

    def data(self, folder: Path) -> tuple[str, ...]:
        return ("dataset=shards", f"dataset.path={folder}/train", f"dataset.val_path={folder}/val", "dataset.holdout=0")

    def diffusion(self, vae: str = "vae") -> tuple[str, ...]:
        return (
            "model=unet_tiny",
            "vae=trained",
            f"vae.path={self.runs / vae / 'model'}",
            "text_encoder=trained",
            f"text_encoder.path={self.runs / 'clip' / 'model'}",
            "objective=flow_matching",
            "sampler=flow_euler",
            "sampler.num_inference_steps=3",
        )


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    root = tmp_path_factory.mktemp("walk")

    def run(verb: str, *words: str) -> int:
        return main([*verb.split(), *words, *([f"paths.runs={root / 'runs'}"] if verb in ("train", "sample") else [])])

    walk = Walk(root / "runs", root / "scenes", root / "latents", run)
    assert run("data shapes", f"out={walk.scenes}", "count=48", "val_count=16") == 0
    assert walk.train("vae", "stage=autoencoder", "vae=kl_tiny", *walk.data(walk.scenes)) == 0
    assert walk.train("clip", "stage=clip", "text_encoder=clip_tiny", *walk.data(walk.scenes)) == 0
    for split in ("train", "val"):
        places = (f"path={walk.scenes / split}", f"out={walk.latents / split}")
        assert run("data encode", *places, f"model={walk.runs / 'vae'}", "resolution=32") == 0
    assert walk.train("unet", *walk.diffusion(), *walk.data(walk.latents)) == 0
    return walk


# What the walk leaves


@pytest.mark.parametrize("name", ["vae", "clip", "unet"])
def test_each_stage_leaves_a_finished_run(walk, name):
    run = RunFolder(walk.runs / name)
    assert run.state()["status"] == "done" and run.state()["step"] == STEPS
    for file in ("config.yaml", "overrides.txt", "environment.json", "metrics.csv", "model/sdscratch.json"):
        assert (run.path / file).is_file(), file
    assert run.newest_intact_checkpoint().step == STEPS
    assert [path.name for path in run.model_folder.rglob("*.bin")] == []


def test_the_latents_that_the_unet_sees_have_unit_variance(walk):
    vae = load_vae(str(walk.runs / "vae" / "model"))
    index = ShardIndex.open(walk.latents / "val")
    moments = np.stack([unpack(index.read(n)["latent.npy"])[0].astype(np.float64) for n in range(len(index))])
    mean, variance = moments[:, 0], np.exp(moments[:, 1])
    assert np.abs(mean.mean((0, 2, 3))).max() < 0.02
    assert vae.config.scaling_factor * np.sqrt((mean**2 + variance).mean()) == pytest.approx(1, abs=0.02)
    assert index.made_by["vae"] == fingerprint(vae)


def test_pictures_come_out_and_stable_diffusion_pipeline_draws_the_same(walk, tmp_path):
    from diffusers import StableDiffusionPipeline

    assert (
        walk.run("sample", f"model={walk.runs / 'unet'}", f"prompt={PROMPTS[0]}", f"out={tmp_path}", "device=cpu") == 0
    )
    (path,) = tmp_path.iterdir()
    ours = TextToImage.from_pretrained(walk.runs / "unet", device="cpu")
    theirs = StableDiffusionPipeline.from_pretrained(walk.runs / "unet" / "model", local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    noise = ours.noise(2, 32, seed=0)
    expected = theirs(PROMPTS, latents=noise, num_inference_steps=3, guidance_scale=3.0).images
    drawn = [np.asarray(image, int) for image in ours(PROMPTS, latents=noise)]
    assert max(np.abs(a - np.asarray(b, int)).max() for a, b in zip(drawn, expected, strict=True)) <= 2
    assert np.abs(np.asarray(Image.open(path), int) - drawn[0]).max() <= 1


def test_training_on_the_pictures_themselves_gives_the_same_kind_of_run(walk):
    assert walk.train("on_line", *walk.diffusion(), *walk.data(walk.scenes)) == 0
    pair = [RunFolder(walk.runs / name).read_metrics()[-1]["val/loss"] for name in ("unet", "on_line")]
    assert pair[0] == pytest.approx(pair[1], rel=0.02)  # the same encodings, but for float16 on disk


def test_latents_of_several_folders_mix(walk):
    sources = [f"{part}: {{path: {walk.latents / part}, share: {n}}}" for n, part in enumerate(("train", "val"), 1)]
    data = ("dataset=mixture", f"dataset.sources={{{', '.join(sources)}}}", "dataset.holdout=0.3")
    assert walk.train("mixed", *walk.diffusion(), *data) == 0
    run = RunFolder(walk.runs / "mixed")
    assert {"val/loss", "val/loss/train", "val/loss/val"} < run.read_metrics()[-1].keys()
    about = json.loads((run.model_folder / "sdscratch.json").read_text())["data"]
    assert [about["sources"][part]["share"] for part in ("train", "val")] == pytest.approx([1 / 3, 2 / 3])


# Bad input: one line, exit code 2, nothing lost


@pytest.fixture
def refused(walk: Walk, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def refused(*words: str, exit_code: int = 2) -> str:
        capsys.readouterr()
        assert walk.train(*words) == exit_code
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sdscratch: ")]
        assert len(errors) == 1
        return errors[0]

    return refused


def test_no_shards(walk, refused, tmp_path):
    said = refused("x1", "stage=autoencoder", "vae=kl_tiny", *walk.data(tmp_path / "nothing"))
    assert f"no shards in {tmp_path / 'nothing' / 'train'}: expected *.tar files" in said and "data shapes" in said


def with_a_bad_sample(walk: Walk, folder: Path, **changes: bytes) -> tuple[str, ...]:
    """The scenes, but the first one with other members."""
    index = ShardIndex.open(walk.scenes / "train")
    samples = [(index.key(n), index.read(n)) for n in range(12)]
    samples[0] = ("bad", {**samples[0][1], **changes})
    write_shards(folder / "train", samples, {})
    shutil.copytree(walk.scenes / "val", folder / "val")
    return walk.data(folder)


def test_a_picture_that_cannot_be_decoded(walk, refused, tmp_path, capsys):
    data = with_a_bad_sample(walk, tmp_path, png=b"no picture")
    said = refused("x2", "stage=autoencoder", "vae=kl_tiny", *data)
    assert (
        "00000.tar: bad is a bad sample: the image is none of JPEG, PNG, WEBP" in said and "on_bad=quarantine" in said
    )
    assert walk.train("x2_quarantine", "stage=autoencoder", "vae=kl_tiny", *data, "dataset.on_bad=quarantine") == 0
    run = RunFolder(walk.runs / "x2_quarantine")
    assert run.state()["status"] == "done"
    warnings = [line for line in capsys.readouterr().err.splitlines() if "bad" in line]
    assert warnings == ["warning: bad is a bad sample; another one took its place"]
    assert run.read_metrics()[-1]["quarantined"] in (1, 2)  # 16 positions among 12 samples


def test_an_empty_caption(walk, refused, tmp_path):
    data = with_a_bad_sample(walk, tmp_path, json=b'{"captions": [""]}', txt=b" ")
    assert "bad is a bad sample: it has no caption" in refused("x3", "stage=clip", "text_encoder=clip_tiny", *data)


def test_a_size_that_the_vae_does_not_divide(walk, refused):
    said = refused("x4", "stage=autoencoder", "vae=kl_tiny", *walk.data(walk.scenes), "dataset.resolution=30")
    assert "resolution=30 is not divisible by the VAE's factor 4. Set it to 28 or 32" in said


def test_latents_of_another_vae(walk, refused):
    assert walk.train("other_vae", "stage=autoencoder", "vae=kl_tiny", *walk.data(walk.scenes), "seed=1") == 0
    said = refused("x5", *walk.diffusion("other_vae"), *walk.data(walk.latents))
    prints = [fingerprint(load_vae(str(walk.runs / name / "model"))) for name in ("vae", "other_vae")]
    assert prints[0] != prints[1] and all(name in said for name in prints) and str(walk.latents) in said
    mixture = ("dataset=mixture", f"dataset.sources={{few: {{path: {walk.latents / 'train'}, share: 1}}}}")
    said = refused("x5", *walk.diffusion("other_vae"), *mixture, "dataset.holdout=0.3")
    assert "source few: " in said and all(name in said for name in prints)


def test_a_run_folder_that_already_holds_a_run(walk, refused):
    run = RunFolder(walk.runs / "vae")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    said = refused("vae", "stage=autoencoder", "vae=kl_tiny", *walk.data(walk.scenes))
    assert f"already holds a run. Go on with it by `sdscratch resume {run.path}`" in said
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_an_unknown_sampler_in_the_configuration(walk, refused):
    said = refused("x6", *walk.diffusion(), *walk.data(walk.latents), "sampler=flow_eular")
    assert "did you mean 'flow_euler'" in said


def test_a_model_trained_without_caption_dropout_warns_of_guidance(walk, capsys, tmp_path):
    assert walk.train("no_dropout", *walk.diffusion(), *walk.data(walk.latents), "caption_dropout=0.0") == 0
    capsys.readouterr()
    assert walk.run("sample", f"model={walk.runs / 'no_dropout'}", "prompt=a", f"out={tmp_path}") == 0
    assert "warning: guidance_scale=3.0, but this model was trained without caption dropout" in capsys.readouterr().err

"""The presets of known systems: as large as they say they are, and trained by the same code as everything else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig
from torch import nn
from transformers import CLIPTokenizer

from sdscratch.commands import data_encode, data_shapes
from sdscratch.commands.train import train
from sdscratch.config import build, compose
from sdscratch.errors import ConfigError
from sdscratch.models import ReleasedUNet
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

# At full size


def parameters(network: nn.Module) -> int:
    assert all(weight.is_meta for weight in network.parameters())
    return sum(weight.numel() for weight in network.parameters())


@pytest.mark.parametrize(
    ("experiment", "part", "count"),
    [
        ("seed_sd_from_scratch", "model", 780_718_404),
        ("seed_coco_autoencoder", "vae", 20_945_575),
        ("seed_coco", "model", 20_930_852),
        ("seed_mini_sd_autoencoder", "vae", 3_066_663),  # of the original: 3,130,763
        ("seed_mini_sd", "model", 241_750_660),  # 230,851,972
    ],
)
def test_networks_have_their_size_and_say_it(experiment, part, count):
    cfg = compose("train", [f"experiment={experiment}", "name=any"])
    with torch.device("meta"):
        assert parameters(build(cfg[part])) == count
    table = (Path(__file__).parents[2] / "docs" / "presets.md").read_text()
    assert f"{count:,}" in table


def test_mini_sds_clip_has_its_size():
    cfg = compose("train", ["experiment=seed_mini_sd_clip"])
    words = ["<|startoftext|>", "<|endoftext|>", *map(str, range(cfg.text_encoder.vocab_size - 2))]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77)
    with torch.device("meta"):
        clip = build(cfg.text_encoder, captions=[], tokenizer=tokenizer).clip
    assert parameters(clip) == 102_046_209  # of the original: 101,521,409
    assert (clip.config.text_config.hidden_size, clip.config.text_config.num_hidden_layers) == (512, 12)


def test_what_the_presets_keep_of_the_originals():
    coco, mini, clip, vae = (
        compose("train", [f"experiment={name}"])
        for name in ("seed_coco", "seed_mini_sd", "seed_mini_sd_clip", "seed_mini_sd_autoencoder")
    )
    noise_schedule = build(coco.objective).noise_schedule
    assert (noise_schedule.kind, noise_schedule.num_train_timesteps) == ("linear", 200)
    assert (noise_schedule.beta_start, noise_schedule.beta_end) == (1e-4, 0.02)
    assert (coco.sampler.sampler, coco.sampler.num_inference_steps) == ("ddpm", 200)
    assert (coco.optimizer._target_, coco.optimizer.weight_decay) == ("torch.optim.Adam", 1e-4)
    assert (coco.global_batch_size, coco.max_steps) == (32, round(15 * 118_287 / 32))
    assert (mini.sampler.sampler, mini.sampler.num_inference_steps, mini.caption_dropout) == ("euler", 20, 0.1)
    assert (mini.callbacks.checkpoints.keep_last, mini.callbacks.checkpoints.keep_best) == (2, 1)
    assert {cfg.optimizer._target_ for cfg in (mini, clip, vae)} == {"bitsandbytes.optim.AdamW8bit"}
    assert [part._target_.split(".")[0] for part in clip.augment.transforms] == ["kornia", "kornia"]
    assert vae.stage.free_bits > 0 and vae.stage.kl_cycle is not None
    released = compose("train", ["experiment=seed_sd_from_scratch", "name=any"])
    assert released.text_encoder.use_attention_mask and released.model.gradient_checkpointing


# At reduced size, on drawn scenes

SMALL_VAE = ["vae.block_out_channels=[8,8,8,8]", "vae.layers_per_block=1", "vae.norm_num_groups=4"]
SMALL_CLIP = [
    "text_encoder.hidden_size=32",
    "text_encoder.num_hidden_layers=1",
    "text_encoder.num_attention_heads=2",
    "text_encoder.vocab_size=600",
    "text_encoder.max_length=16",
]
SMALL_UNET = ["model.norm_num_groups=4", "model.attention_head_dim=2", "model.cross_attention_dim=32"]

Preset = Callable[..., RunFolder]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """64 scenes of 64 px, and 8 held-out ones, where COCO is looked for."""
    folder = tmp_path_factory.mktemp("presets")
    sizes = ["count=64", "val_count=8", "resolution=64"]
    data_shapes.run(compose("data/shapes", [f"out={folder / 'data' / 'coco'}", *sizes]))
    (folder / "data" / "laion_512").symlink_to(folder / "data" / "coco" / "train")
    return folder


@pytest.fixture(scope="module")
def preset(folder: Path) -> Preset:
    """Trains one for 4 steps, without what needs an extra that is not here."""

    def run(experiment: str, *overrides: str) -> RunFolder:
        cfg = reduced(folder, experiment, *overrides)
        instead = []
        if "bitsandbytes" in cfg.optimizer._target_ and find_spec("bitsandbytes") is None:
            instead.append("optimizer=adamw")
        if cfg.augment and find_spec("kornia") is None:
            instead.append("augment=none")
        return train(reduced(folder, experiment, *overrides, *instead) if instead else cfg)

    return run


def reduced(folder: Path, experiment: str, *overrides: str) -> DictConfig:
    common = [f"paths.runs={folder / 'runs'}", f"paths.data={folder / 'data'}", "trainer=cpu", "logger=none"]
    size = ["dataset.resolution=64", "dataset.num_workers=0", "global_batch_size=4", "max_steps=4", "threads=1"]
    often = ["lr_schedule.warmup_steps=0", *(f"callbacks.{name}.every=1" for name in ("metrics", "checkpoints"))]
    seldom = ["callbacks.validation.every=2", "callbacks.previews=null", "callbacks.plots=null"]
    return compose("train", [f"experiment={experiment}", *common, *size, *often, *seldom, *overrides])


@pytest.fixture(scope="module")
def mini_sd(preset: Preset, folder: Path) -> dict[str, RunFolder]:
    autoencoder = preset("seed_mini_sd_autoencoder", *SMALL_VAE, "stage.kl_cycle=4")
    clip = preset("seed_mini_sd_clip", *SMALL_CLIP)
    out = folder / "runs" / "seed_mini_sd" / "latents"
    encode(folder / "data" / "laion_512", out, autoencoder)
    return {
        "autoencoder": autoencoder,
        "clip": clip,
        "unet": preset("seed_mini_sd", *SMALL_UNET, "model.block_out_channels=[8,16,16,32]"),
    }


def encode(path: Path, out: Path, model: RunFolder) -> None:
    job = [f"path={path}", f"out={out}", f"model={model.path}", "resolution=64", "flips=true"]
    data_encode.run(compose("data/encode", job))


def losses(run: RunFolder) -> Iterator[float]:
    for row in run.read_metrics():
        assert row["train/loss"] > 0
        yield row["train/loss"]


def assert_draws(run: RunFolder, num_inference_steps: int | None = None) -> TextToImage:
    pipe = TextToImage.from_pretrained(run.path, device="cpu")
    one, other = pipe(["a red circle", "a blue ring"], num_inference_steps=num_inference_steps)
    assert one.size == other.size == (64, 64)
    return pipe


def test_seed_mini_sd_trains_through_its_three_stages(mini_sd):
    assert {name: len(list(losses(run))) for name, run in mini_sd.items()} == dict.fromkeys(mini_sd, 4)
    weights = [row["train/kl_weight"] for row in mini_sd["autoencoder"].read_metrics()]
    assert weights == pytest.approx([0.0, 5e-4, 1e-3, 1e-3])
    assert_draws(mini_sd["unet"])


def test_seed_mini_sd_keeps_the_newest_two_checkpoints_the_best_and_the_final_model(mini_sd):
    run = mini_sd["unet"]
    measured = [row for row in run.read_metrics() if "val/loss" in row]
    best = min(measured, key=lambda row: row["val/loss"])["step"]
    assert {checkpoint.step for checkpoint in run.checkpoints()} == {3, 4, best}
    assert (run.model_folder / "unet").is_dir()


def test_what_changes_pictures_is_refused_on_latents(folder, mini_sd):
    latents = folder / "runs" / "seed_mini_sd" / "latents"
    parts = ["name=elsewhere", "dataset=shards", "augment=kornia", f"dataset.path={latents}"]
    with pytest.raises(ConfigError, match="augment changes pictures, but dataset.path holds latents"):
        train(reduced(folder, "seed_sd_from_scratch", *parts))


def trained(mini_sd: dict[str, RunFolder]) -> list[str]:
    parts = {"vae": "autoencoder", "text_encoder": "clip"}
    return [f"{part}.path={mini_sd[run].model_folder}" for part, run in parts.items()]


def test_seed_coco_trains_through_its_two_stages(preset, folder, mini_sd):
    autoencoder = preset("seed_coco_autoencoder", *SMALL_VAE)
    for split in ("train", "val"):
        encode(folder / "data" / "coco" / split, folder / "runs" / "seed_coco" / "latents" / split, autoencoder)
    small = ["model.block_out_channels=[8,16,16]", f"text_encoder.path={mini_sd['clip'].model_folder}"]
    run = preset("seed_coco", *SMALL_UNET, *small)
    assert len(list(losses(run))) == 4
    assert run.newest_intact_checkpoint().load()["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 1e-4
    pipe = assert_draws(run, num_inference_steps=8)
    assert pipe.defaults.sampler == "ddpm" and pipe.noise_schedule.num_train_timesteps == 200


def test_seed_sd_from_scratch_trains_and_is_sampled(preset, folder, mini_sd):
    latents = folder / "runs" / "seed_mini_sd" / "latents"
    small = ["model.block_out_channels=[32,32,32,32]", "model.cross_attention_dim=32", "name=released"]
    parts = ["vae=trained", "text_encoder=trained", *trained(mini_sd), f"dataset.path={latents}"]
    run = preset("seed_sd_from_scratch", *small, *parts, "objective.min_snr_gamma=5.0")
    first, *_, last = losses(run)
    assert last != first
    pipe = assert_draws(run, num_inference_steps=4)
    assert isinstance(pipe.unet, ReleasedUNet) and pipe.encoders.text.masks_padding
    ema, raw = (pipe("a red circle", num_inference_steps=2, weights=weights)[0] for weights in ("ema", "raw"))
    assert ema.size == raw.size

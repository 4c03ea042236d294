"""TextToImage, on the tiny run: which pictures it draws, from what, and what it refuses."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import sdscratch
from sdscratch.errors import ConfigError, DataError, RunFolderError
from sdscratch.models import UNet
from sdscratch.pipeline import SamplingDefaults, TextToImage
from sdscratch.run_folder import RunFolder

PROMPTS = ["a red circle", "a blue ring at the top", "a green square", "tan background", "a pink cross, left"]


@pytest.fixture(scope="module")
def pipe(tiny_run: RunFolder) -> TextToImage:
    return TextToImage.from_pretrained(tiny_run.path, device="cpu")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, int)


def difference(a: list[Image.Image], b: list[Image.Image]) -> int:
    return max(int(np.abs(pixels(x) - pixels(y)).max()) for x, y in zip(a, b, strict=True))


# One picture, alone and in company


def test_a_prompt_gives_one_rgb_picture_of_the_models_own_size(pipe):
    (image,) = pipe("a red circle")
    assert image.mode == "RGB" and image.size == (32, 32)
    assert difference([image], pipe(["a red circle"], num_inference_steps=4, guidance_scale=3.0, sampler="euler")) == 0


@pytest.mark.parametrize(
    ("sampler", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("ddpm", 0.0), ("heun", 0.0), ("dpmpp_2m", 0.0)]
)
def test_picture_i_depends_on_its_prompt_and_seed_plus_i_alone(pipe, sampler, eta):
    settings = {"sampler": sampler, "eta": eta, "num_inference_steps": 5}
    together = pipe(PROMPTS, seed=10, **settings)
    in_batches = pipe(PROMPTS, seed=10, batch_size=2, **settings)
    alone = [pipe(prompt, seed=10 + i, **settings)[0] for i, prompt in enumerate(PROMPTS)]
    assert difference(together, in_batches) <= 1 and difference(together, alone) <= 1
    assert difference(together, pipe(PROMPTS, seed=10, **settings)) == 0
    others = pipe([*PROMPTS[:2], "a black ring", "yellow", "bottom"], seed=10, **settings)
    assert difference(together[:2], others[:2]) == 0  # to the last bit, whatever the others in the batch are


def test_each_seed_gives_another_picture(pipe):
    pictures = pipe(["a red circle"] * 4, seed=0)
    assert all(difference([a], [b]) > 50 for i, a in enumerate(pictures) for b in pictures[:i])


def test_noise_is_what_a_cpu_generator_of_each_seed_draws(pipe):
    noise = pipe.noise(3, 32, seed=7)
    assert torch.equal(noise[2:], torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(9)))
    assert difference(pipe(PROMPTS[:3], latents=noise), pipe(PROMPTS[:3], seed=7)) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_seed_gives_the_same_picture_on_cpu_and_gpu(pipe, tiny_run):
    on_gpu = TextToImage.from_pretrained(tiny_run.path)
    assert next(on_gpu.unet.parameters()).is_cuda
    assert difference(pipe(PROMPTS, sampler="ddpm", seed=3), on_gpu(PROMPTS, sampler="ddpm", seed=3)) <= 2


# What steers a picture


def test_negative_prompts_guidance_and_rescaling_all_matter(pipe):
    settings = {"seed": 1, "guidance_scale": 6.0}
    plain = pipe(PROMPTS, **settings)
    variants = [
        pipe(PROMPTS, negative_prompt="a green square", **settings),
        pipe(PROMPTS, guidance_scale=1.0, seed=1),
        pipe(PROMPTS, guidance_rescale=1.0, **settings),
        pipe(PROMPTS, sampler="heun", **settings),
        pipe(PROMPTS, weights="raw", **settings),
    ]
    for i, variant in enumerate(variants):
        assert difference(plain, variant) > 0, i
        assert all(difference(variant, other) > 0 for other in variants[:i]), i


def test_negative_prompts_are_one_for_all_or_one_each(pipe):
    one = pipe(PROMPTS[:2], negative_prompt="a green square", guidance_scale=6.0)
    each = pipe(PROMPTS[:2], negative_prompt=["a green square", ""], guidance_scale=6.0)
    none = pipe(PROMPTS[:2], guidance_scale=6.0)
    assert difference(one[:1], each[:1]) <= 1 and difference(none[1:], each[1:]) <= 1
    assert difference(one[1:], each[1:]) > 0


def test_without_guidance_the_negative_prompt_says_nothing(pipe):
    assert difference(pipe("a", guidance_scale=1), pipe("a", guidance_scale=1, negative_prompt="b")) == 0


def test_other_sizes_are_multiples_of_the_vae_factor(pipe):
    assert pipe("a red circle", size=36)[0].size == (36, 36)
    with pytest.raises(ConfigError, match="size=33 is not divisible by the VAE's factor 4. Set it to 32 or 36"):
        pipe("a red circle", size=33)


# Weights


def test_ema_is_the_default_and_raw_is_the_network_of_the_newest_checkpoint(pipe, tiny_run):
    checkpoint = tiny_run.newest_intact_checkpoint().load()
    raw = {name.removeprefix("network."): tensor for name, tensor in checkpoint["state_dict"].items()}
    for weights, expected in (("ema", checkpoint["ema"]["weights"]), ("raw", raw)):
        unet = UNet.from_config(pipe.unet.config).eval()
        unet.load_state_dict(expected)
        other = TextToImage(unet, pipe.encoders, pipe.noise_schedule, pipe.prediction_type, pipe.defaults)
        assert difference(pipe(PROMPTS, weights=weights), other(PROMPTS)) == 0
    assert difference(pipe(PROMPTS), pipe(PROMPTS, weights="ema")) == 0
    assert difference(pipe(PROMPTS), pipe(PROMPTS, weights="raw")) > 0


def test_raw_weights_need_a_run(tiny_run):
    pipe = TextToImage.from_pretrained(tiny_run.model_folder)
    with pytest.raises(ConfigError, match="weights=raw needs a run with checkpoints"):
        pipe("a", weights="raw")


def test_raw_weights_that_are_damaged_are_refused(tiny_run, tmp_path):
    run = RunFolder(tmp_path)
    run.model_folder.symlink_to(tiny_run.model_folder)
    run.checkpoint_folder.mkdir()
    for path in tiny_run.checkpoint_folder.iterdir():
        content = path.read_bytes()
        (run.checkpoint_folder / path.name).write_bytes(content if path.suffix == ".json" else content[:-1])
    with pytest.raises(RunFolderError, match="intact"):
        TextToImage.from_pretrained(tmp_path)("a", weights="raw")


# Refusals


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"prompts": ""}, "prompt 1 of 1 is ''"),
        ({"prompts": ["a", "  "]}, "prompt 2 of 2 is '  '"),
        ({"prompts": ["a", None]}, "prompt 2 of 2 is None"),
        ({"prompts": []}, "there is no prompt"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"negative_prompt": [3]}, "expected texts"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0: expected a whole number of at least 1"),
        ({"num_inference_steps": -4}, "num_inference_steps is -4"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan: expected a number"),
        ({"guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"guidance_scale": "7"}, "guidance_scale is '7'"),
        ({"guidance_rescale": 1.5}, r"guidance_rescale is 1.5: expected a number in \[0, 1\]"),
        ({"sampler": "dpmpp"}, "sampler 'dpmpp' is unknown; expected one of .*Did you mean 'dpmpp_2m'"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": float("nan"), "sampler": "ddim"}, "eta is nan"),
        ({"eta": 0.5, "sampler": "heun"}, "eta=0.5 is for sampler=ddim; heun has none"),
        ({"seed": -1}, "seed is -1: expected a whole number of at least 0"),
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"size": 0}, "size is 0"),
        ({"size": "32"}, "size is '32'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"weights": "average"}, "weights='average' is unknown; expected ema or raw"),
        (
            {"latents": torch.zeros(1, 4, 8, 9)},
            r"latents are \(1, 4, 8, 9\); 1 prompts and size=32 need \(1, 4, 8, 8\)",
        ),
    ],
)
def test_what_cannot_be_drawn_is_refused(pipe, arguments, said):
    with pytest.raises(ConfigError, match=said):
        pipe(**{"prompts": "a red circle", **arguments})


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"sampler": "eular"}, "Did you mean 'euler'"),
        ({"num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"size": -8}, "size is -8"),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_defaults_that_no_model_could_be_sampled_with_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        SamplingDefaults(**{"size": 32, **wrong})


@pytest.mark.parametrize("texts", [{"prompts": "a \ud800 b"}, {"prompts": "a", "negative_prompt": "\udfff"}], ids=ascii)
def test_half_a_character_is_no_prompt(pipe, texts):
    with pytest.raises(ConfigError, match="holds half a character"):
        pipe(**texts)


@pytest.mark.parametrize("device", ["gpu", "meta:x", "cuda:77"])
def test_a_device_that_is_not_there_is_refused(tiny_run, device):
    with pytest.raises(ConfigError, match=f"device={device} cannot be used"):
        TextToImage.from_pretrained(tiny_run.path, device=device)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="is no whole model"):
        TextToImage.from_pretrained(tmp_path)


@pytest.fixture
def without_dropout(pipe: TextToImage) -> Iterator[TextToImage]:
    before, pipe.defaults = pipe.defaults, replace(pipe.defaults, caption_dropout=0.0)
    yield pipe
    pipe.defaults = before


def test_guidance_of_a_model_trained_without_caption_dropout_warns(without_dropout):
    with pytest.warns(UserWarning, match="guidance_scale=3.0, but this model was trained without caption dropout"):
        without_dropout("a red circle")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without_dropout("a red circle", guidance_scale=1.0)


# The rest


def test_progress_counts_picture_steps_to_the_end(pipe):
    calls: list[tuple[int, int]] = []
    pipe(PROMPTS, batch_size=2, num_inference_steps=3, progress=lambda done, total: calls.append((done, total)))
    assert [total for _, total in calls] == [15] * 9
    assert [done for done, _ in calls] == [2, 4, 6, 8, 10, 12, 13, 14, 15]


def test_sampling_leaves_no_gradients_and_the_global_random_state_alone(pipe):
    state = torch.get_rng_state()
    pipe("a red circle", sampler="ddpm")
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in pipe.unet.parameters())


def test_a_folder_of_a_model_made_elsewhere_has_the_usual_defaults(tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.model_folder, tmp_path / "model")
    (folder / "sdscratch.json").unlink()
    defaults = TextToImage.from_pretrained(folder).defaults
    assert (defaults.size, defaults.num_inference_steps, defaults.guidance_scale, defaults.sampler) == (
        32,
        50,
        7.5,
        "ddim",
    )


def test_the_public_name_is_at_the_top_of_the_package():
    assert sdscratch.TextToImage is TextToImage

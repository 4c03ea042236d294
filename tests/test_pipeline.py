"""TextToImage, on the tiny run: which pictures it draws, from what, and what it refuses."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

import sdscratch
from sdscratch.data import to_pil
from sdscratch.data.images import to_tensor
from sdscratch.devices import DTYPES
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


def test_eight_at_once_are_eight_pictures_each_in_a_batch_of_eight(pipe):
    """To the last bit, wherever in the batch they stand."""
    prompts = [*PROMPTS, "a black ring", "yellow", "bottom"]
    together = pipe(prompts, seed=10, num_inference_steps=3)
    for i in (0, 3, 7):
        at_first = pipe([prompts[i], *["something else"] * 7], seed=10 + i, num_inference_steps=3)[0]
        assert difference([at_first], [together[i]]) == 0


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


def calls_of(pipe: TextToImage, **settings: Any) -> list[int]:
    """How many rows the network answered, call by call."""
    rows: list[int] = []
    hook = pipe.unet.register_forward_hook(lambda module, inputs, output: rows.append(len(output)))
    try:
        pipe("a red circle", sampler="euler", num_inference_steps=5, **settings)
    finally:
        hook.remove()
    return rows


def test_outside_the_guidance_interval_the_network_is_asked_for_the_prompt_alone(pipe):
    sigmas = pipe.noise_schedule.grid(5).sigmas.tolist()
    low, high = sigmas[3], sigmas[1]  # (low, high]: the second and the third step
    assert calls_of(pipe, guidance_interval=(low, high)) == [1, 2, 2, 1, 1]
    assert calls_of(pipe, guidance_interval=(low, high), guidance_scale=1) == [1] * 5
    assert calls_of(pipe) == [2] * 5


def test_the_guidance_interval_is_what_guides(pipe):
    settings = {"guidance_scale": 6.0, "num_inference_steps": 5}
    guided, unguided = pipe(PROMPTS[:2], **settings), pipe(PROMPTS[:2], num_inference_steps=5, guidance_scale=1)
    assert difference(guided, pipe(PROMPTS[:2], guidance_interval=(0, 1e9), **settings)) == 0
    assert difference(unguided, pipe(PROMPTS[:2], guidance_interval=(0, 1e-9), **settings)) <= 1
    between = pipe(PROMPTS[:2], guidance_interval=(0.3, 3.0), **settings)
    assert difference(guided, between) > 0 and difference(unguided, between) > 0


def test_a_picture_may_be_higher_than_wide(pipe):
    (image,) = pipe("a red circle", height=44, width=28)
    assert image.size == (28, 44)
    assert pipe("a red circle", height=44)[0].size == (32, 44)
    with pytest.raises(ConfigError, match="width=30 is not divisible by the VAE's factor 4. Set it to 28 or 32"):
        pipe("a red circle", width=30)


def test_other_sizes_are_multiples_of_the_vae_factor(pipe):
    assert pipe("a red circle", size=36)[0].size == (36, 36)
    with pytest.raises(ConfigError, match="size=33 is not divisible by the VAE's factor 4. Set it to 32 or 36"):
        pipe("a red circle", size=33)


# From a picture on


@pytest.fixture(scope="module")
def initial() -> Image.Image:
    return Image.radial_gradient("L").resize((40, 64))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m"])
def test_the_less_strength_the_nearer_to_the_picture(pipe, initial, sampler):
    pixels = to_tensor(ImageOps.fit(initial.convert("RGB"), (32, 32), Image.Resampling.LANCZOS))[None]
    clean = pipe.encoders.encode_images(pixels, torch.zeros(1, 4, 8, 8))

    def distance(strength: float) -> float:
        last: list[torch.Tensor] = []
        settings = {"init_image": initial, "num_inference_steps": 10, "sampler": sampler, "strength": strength}
        pipe("a", on_step=lambda step, steps, estimate: last.append(estimate), **settings)
        return float((last[-1] - clean).square().mean())

    assert distance(0.1) < 0.5 * distance(0.5) < distance(1.0)


def test_strength_is_the_share_of_steps_that_are_taken(pipe, initial):
    for strength, taken in ((1.0, 10), (0.75, 7), (0.1, 1)):
        steps: list[tuple[int, int]] = []
        seen = partial(lambda steps, step, of, estimate: steps.append((step, of)), steps)
        pipe("a", init_image=initial, num_inference_steps=10, strength=strength, on_step=seen)
        assert steps == [(i + 1, taken) for i in range(taken)]


def test_each_seed_draws_another_way_on(pipe, initial):
    together = pipe(PROMPTS, init_image=initial, seed=4)
    assert difference(together, pipe(PROMPTS, init_image=initial, seed=4, batch_size=2)) <= 1
    first, second = pipe(["a"] * 2, init_image=initial)
    assert difference([first], [second]) > 0


def test_a_strength_of_no_step_is_refused(pipe, initial):
    with pytest.raises(ConfigError, match="strength=0.05 of num_inference_steps=10 is no whole step.*0.1 or more"):
        pipe("a", init_image=initial, num_inference_steps=10, strength=0.05)


# What networks compute in


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_draws_nearly_the_same(tiny_run, pipe, initial, dtype):
    half = TextToImage.from_pretrained(tiny_run.path, device="cpu", dtype=dtype)
    networks = (half.unet, half.network("raw"), half.encoders.vae, half.encoders.text.model)
    assert {next(network.parameters()).dtype for network in networks} == {DTYPES[dtype]}
    for settings in ({}, {"init_image": initial}):
        pairs = zip(half(PROMPTS[:2], **settings), pipe(PROMPTS[:2], **settings), strict=True)
        assert max(np.abs(pixels(a) - pixels(b)).mean() for a, b in pairs) < 4


def test_samplers_compute_in_single_precision_whatever_the_networks_do(tiny_run):
    half = TextToImage.from_pretrained(tiny_run.path, device="cpu", dtype="bf16")
    seen: list[torch.dtype] = []
    half("a", on_step=lambda step, steps, estimate: seen.append(estimate.dtype))
    assert seen == [torch.float32] * 4


def test_tiling_decodes_large_pictures_in_parts(tiny_run):
    tiled = TextToImage.from_pretrained(tiny_run.path, device="cpu", tiling=True)
    seen: list[torch.Size] = []
    tiled.encoders.vae.decoder.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
    (small, _) = tiled(["a", "b"], num_inference_steps=1)
    assert seen == [(1, 4, 8, 8)] * 2 and small.size == (32, 32)
    seen.clear()
    assert tiled("a", num_inference_steps=1, height=64, width=48)[0].size == (48, 64)
    assert len(seen) > 1 and max(shape[2:].numel() for shape in seen) <= 64


def test_numbers_that_are_not_finite_are_warned_of(tiny_run):
    broken = TextToImage.from_pretrained(tiny_run.path, device="cpu")
    torch.nn.init.constant_(broken.unet.conv_out.bias, float("nan"))
    with pytest.warns(UserWarning, match="no finite numbers"):
        broken("a")


@pytest.mark.parametrize(
    ("settings", "times"),
    [({}, 1), ({"guidance_scale": 1.0}, 1), ({"sampler": "heun"}, 1), ({"guidance_interval": [0.3, 5.0]}, 2)],
    ids=str,
)
def test_the_steps_of_a_sampler_share_one_reading_of_the_text(pipe, settings, times):
    """With guidance at some of the steps only, one of prompt and negative prompt and one of the prompt alone.

    Prompts and negative prompts are encoded in one pass.
    """
    read, encoded = [], []
    keys = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    hooks = [
        keys.register_forward_hook(lambda *_: read.append(1)),
        pipe.encoders.text.model.register_forward_hook(lambda *_: encoded.append(1)),
    ]
    pipe(PROMPTS[:2], "blurred", **{"guidance_scale": 3.0} | settings)
    for hook in hooks:
        hook.remove()
    assert len(read) == times and len(encoded) == 1


def test_on_a_cpu_pictures_are_decoded_in_channels_last(pipe):
    assert pipe.encoders.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


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
        ({"sampler": "dpmpp"}, "sampler='dpmpp' is unknown; expected ddim, .*Did you mean 'dpmpp_2m'"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": float("nan"), "sampler": "ddim"}, "eta is nan"),
        ({"prompts": "a" * 2_000_000}, "'a{60}' goes on for 2000000 characters: expected at most 10000"),
        ({"negative_prompt": "b" * 20_000}, "goes on for 20000 characters"),
        ({"height": 30}, "height=30 is not divisible"),
        ({"height": 32, "width": 40, "size": 32}, "size=32 stands for height and width"),
        ({"width": 2**20}, "width is 1048576: expected a whole number of at least 1 and at most 8192"),
        ({"strength": 1.5}, r"strength is 1.5: expected a number in \[0, 1\]"),
        ({"guidance_interval": 3}, "guidance_interval is 3: expected two noise levels"),
        ({"guidance_interval": "ab"}, "guidance_interval is 'ab': expected two noise levels"),
        ({"guidance_interval": [5, 0.3]}, r"guidance_interval is \[5, 0.3\]: expected the lower noise level first"),
        ({"guidance_interval": [-1, 2]}, "guidance_interval is -1: expected a number of at least 0"),
        ({"guidance_interval": [0, float("nan")]}, "guidance_interval is nan"),
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
    with pytest.raises(ConfigError, match=f"device={device} cannot be used|device is '{device}': expected cuda"):
        TextToImage.from_pretrained(tiny_run.path, device=device)


def test_a_dtype_that_is_not_known_is_refused(tiny_run):
    with pytest.raises(ConfigError, match="dtype='fp8' is unknown; expected fp32, fp16 or bf16"):
        TextToImage.from_pretrained(tiny_run.path, dtype="fp8")


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


def test_each_step_shows_the_picture_as_it_is_estimated_then(pipe):
    seen: list[tuple[int, int, torch.Tensor]] = []
    images = pipe(PROMPTS[:2], sampler="dpmpp_2m", num_inference_steps=6, on_step=lambda *step: seen.append(step))
    assert [step[:2] for step in seen] == [(i + 1, 6) for i in range(6)]
    shown = [[to_pil(image) for image in pipe.encoders.decode(estimate)] for _, _, estimate in seen]
    assert difference(shown[-1], images) == 0
    assert difference(shown[0], images) > 0


def test_raising_in_a_step_stops_the_drawing_there(pipe):
    class Enough(Exception):
        pass

    calls: list[int] = []

    def stop(step: int, steps: int, estimate: torch.Tensor) -> None:
        calls.append(step)
        if step == 3:
            raise Enough

    with pytest.raises(Enough):
        pipe("a", num_inference_steps=50, on_step=stop)
    assert calls == [1, 2, 3]
    assert difference(pipe(PROMPTS[:1]), pipe(PROMPTS[:1])) == 0


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

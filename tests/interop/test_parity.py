"""StableDiffusionPipeline loads our model folder and draws our pictures."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image
from tiny_models import PROMPTS, difference, save

from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.pipeline import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers

KINDS: dict[str, tuple[NoiseSchedule | FlowSchedule, PredictionType]] = {
    "epsilon": (NoiseSchedule(), "epsilon"),
    "v": (NoiseSchedule(kind="cosine"), "v_prediction"),
    "v_zero_terminal_snr": (NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction"),
    "flow": (FlowSchedule(), "flow_prediction"),
    "leading": (NoiseSchedule(timestep_spacing="leading", steps_offset=1), "epsilon"),
    "200_timesteps": (NoiseSchedule("linear", 200, beta_start=1e-4, beta_end=0.02), "v_prediction"),
}


def seeds(first: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(first + i) for i in range(len(PROMPTS))]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp(request.param) / "model", *KINDS[request.param])


@pytest.fixture(scope="module")
def ours(folder: Path) -> TextToImage:
    return TextToImage.from_pretrained(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> StableDiffusionPipeline:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*(steps_offset|clip_sample|outdated|deprecated).*", FutureWarning)
        pipe = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize(
    "guidance",
    [
        {"guidance_scale": 1.0},
        {"guidance_scale": 7.5, "negative_prompt": [*PROMPTS[1:], "red"]},
        {"guidance_scale": 7.5, "guidance_rescale": 0.7},
    ],
    ids=["unguided", "guided", "rescaled"],
)
def test_the_same_noise_gives_the_same_picture(ours, theirs, guidance):
    for steps in (1, 7):  # 7 divides no number of timesteps
        noise = ours.noise(len(PROMPTS), 32, seed=5)
        settings = {"num_inference_steps": steps, **guidance}
        pictures = ours(PROMPTS, latents=noise, **settings)
        assert difference(pictures, theirs(PROMPTS, latents=noise.clone(), **settings).images) <= 2
    unlike = ours(PROMPTS[::-1], latents=noise, num_inference_steps=steps, guidance_scale=3.0)
    assert difference(pictures, unlike) > 10  # text and guidance do show in what is compared


def test_the_same_seeds_give_the_same_pictures_in_the_size_that_the_model_is_for(ours, theirs):
    expected = theirs(PROMPTS, generator=seeds(3), num_inference_steps=5, guidance_scale=4.0).images
    assert [picture.size for picture in expected] == [(32, 32)] * 3
    assert difference(ours(PROMPTS, seed=3), expected) <= 2  # steps and guidance are the model's own defaults


@pytest.mark.parametrize("strength", [0.29, 0.8, 1.0])  # int(7 * 0.29) is 2
def test_the_same_seeds_draw_the_same_pictures_on_from_a_picture(ours, theirs, strength):
    (image,) = ours(PROMPTS[0], seed=8, num_inference_steps=2)
    settings = {"num_inference_steps": 7, "guidance_scale": 4.0, "strength": strength}
    on_from = StableDiffusionImg2ImgPipeline(**theirs.components, requires_safety_checker=False)
    on_from.set_progress_bar_config(disable=True)
    expected = on_from(PROMPTS, image=[image] * 3, generator=seeds(3), **settings).images
    pictures = ours(PROMPTS, init_image=image, seed=3, **settings)
    assert difference(pictures, expected) <= 2
    other = ours(PROMPTS, init_image=Image.new("RGB", (32, 32), "red"), seed=3, **settings)
    assert difference(pictures, other) > 10 or strength == 1.0


@pytest.mark.parametrize(("sampler", "eta"), [("ddim", 0.6), ("ddpm", 0.0)])
@pytest.mark.parametrize("kind", ["epsilon", "v"])
def test_the_same_seeds_give_the_same_fresh_noise(tmp_path, kind, sampler, eta):
    folder = save(tmp_path / "model", *KINDS[kind])
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    scheduler = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
    theirs.scheduler = scheduler.from_config(theirs.scheduler.config, clip_sample=False, set_alpha_to_one=True)
    settings = {"num_inference_steps": 8, "guidance_scale": 2.0, "eta": eta}
    pictures = TextToImage.from_pretrained(folder)(PROMPTS, seed=3, sampler=sampler, **settings)
    assert difference(pictures, theirs(PROMPTS, generator=seeds(3), **settings).images) <= 2


def test_linspace_is_nearly_the_same(tmp_path):
    folder = save(tmp_path / "model", NoiseSchedule(timestep_spacing="linspace"), "v_prediction")
    theirs = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    ours = TextToImage.from_pretrained(folder)
    noise = ours.noise(len(PROMPTS), 32, seed=5)
    settings = {"num_inference_steps": 20, "guidance_scale": 7.5}
    assert difference(ours(PROMPTS, latents=noise, **settings), theirs(PROMPTS, latents=noise, **settings).images) <= 4

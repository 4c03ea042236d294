"""Pictures from prompts, beside StableDiffusionPipeline on the same model folder."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from diffusers import StableDiffusionPipeline

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.timing import Comparison, race
from sdscratch.devices import dtype_of
from sdscratch.diffusion import NoiseSchedule
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import UNet, new_clip, new_vae
from sdscratch.models.regions import compile_network
from sdscratch.pipeline import TextToImage

OURS, PEER = "sdscratch", "StableDiffusionPipeline"
STEPS = {"cpu": 4, "cuda": 50}
STEPS_PER_SECOND = "sampling steps per second, ours, batch 1"
PROMPT = "a red circle on a blue background"


def bench_sample(network: UNet, setting: Setting) -> Findings:
    """One picture by DDIM with guidance, decoded by a small random VAE; in bfloat16 where training would be mixed."""
    dtype = "bf16" if setting.precision == "bf16-mixed" else "fp32"
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        _write(network, setting, folder)
        ours = TextToImage.from_pretrained(folder, device=str(setting.device), dtype=dtype)
        theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None, dtype=dtype_of(dtype))
        theirs.to(setting.device)
    theirs.set_progress_bar_config(disable=True)
    compile_network(ours.unet, setting.compile)
    ours.unet.to(memory_format=setting.memory_format)  # type: ignore[call-overload]
    size, steps = 8 * setting.latent_size, STEPS[setting.device.type]

    def draw_ours() -> None:
        ours(PROMPT, num_inference_steps=steps, guidance_scale=7.5, sampler="ddim")

    def draw_theirs() -> None:
        theirs(PROMPT, num_inference_steps=steps, guidance_scale=7.5, height=size, width=size)

    laps = race({OURS: draw_ours, PEER: draw_theirs}, setting.rounds, setting.device, PEER, setting.until)
    compared = Comparison.of(f"sampling, {steps} steps", laps, OURS, PEER, goal=1.8 if setting.on_cuda else 1.1)
    return Findings([compared], [Fact(STEPS_PER_SECOND, steps / laps.of(OURS), "")])


def _write(network: UNet, setting: Setting, folder: Path) -> None:
    channels, width = network.config["in_channels"], network.config["cross_attention_dim"]
    torch.manual_seed(0)
    vae = new_vae(
        block_out_channels=[32] * 4, layers_per_block=1, latent_channels=channels, norm_num_groups=32, sample_size=64
    )
    text = new_clip(
        [PROMPT], hidden_size=width, num_hidden_layers=2, num_attention_heads=8, image_size=32, patch_size=16
    )
    save_model_folder(
        folder,
        unet=network,
        vae=vae,
        text=text,
        noise_schedule=NoiseSchedule(),
        prediction_type="epsilon",
        about={"sampling": {"size": 8 * setting.latent_size}},
    )

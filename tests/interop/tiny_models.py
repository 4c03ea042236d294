"""A tiny model with random weights, as whole as a trained one: UNet, VAE of factor 4, CLIP text tower with tokenizer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import FrozenEncoders, UNet, new_clip, new_vae

PROMPTS = ["a red circle", "a blue square on the left", "blue"]
SAMPLING = {"size": 32, "num_inference_steps": 5, "guidance_scale": 4.0, "sampler": "ddim", "caption_dropout": 0.1}
UNET = {
    "sample_size": 64,  # of no model here: what pipelines draw unasked has to come from elsewhere
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "attention_head_dim": [2, 4],
    "cross_attention_dim": 32,
    "norm_num_groups": 8,
}


class Parts(NamedTuple):
    unet: UNet
    encoders: FrozenEncoders


@cache
def parts() -> Parts:
    torch.manual_seed(0)
    unet = UNet.from_config(UNET).eval()
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if ".attn2.to_v" in name:
                parameter.mul_(20)  # so that the text shows
    vae = new_vae(
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
        mid_block_add_attention=False,
    )
    vae.register_to_config(scaling_factor=0.7)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 600, "max_length": 16}
    text = new_clip(PROMPTS, **sizes, image_size=32, patch_size=8)
    return Parts(unet, FrozenEncoders(vae, text))


def save(folder: Path, noise_schedule: NoiseSchedule | FlowSchedule, prediction_type: PredictionType) -> Path:
    unet, encoders = parts()
    save_model_folder(
        folder,
        unet=unet,
        vae=encoders.vae,
        text=encoders.text,
        noise_schedule=noise_schedule,
        prediction_type=prediction_type,
        about={"sampling": SAMPLING},
    )
    return folder


def difference(ours: list[Image.Image], theirs: list[Image.Image]) -> int:
    """The largest, of any pixel and channel, in 255ths."""
    pairs = zip(ours, theirs, strict=True)
    return max(int(np.abs(np.asarray(a, int) - np.asarray(b, int)).max()) for a, b in pairs)

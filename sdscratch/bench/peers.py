"""Training steps as others take them, on the same network and inputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from sdscratch.bench.setting import Setting

LR, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 1e-2, 1.0


class DiffusersScript:
    """Steps as diffusers' examples/text_to_image/train_text_to_image.py takes them with --use_ema and its other defaults.

    The network is in NCHW and eager, AdamW and the average are as they come, and the loss is fetched from the device twice.
    """

    def __init__(self, config: dict[str, Any], setting: Setting) -> None:
        self.setting = setting
        with setting.device:  # where random weights of this number come at once
            self.unet = UNet2DConditionModel.from_config(config)
        self.average = EMAModel(self.unet.parameters(), model_cls=UNet2DConditionModel, model_config=self.unet.config)
        self.average.to(setting.device)
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
        self.lr_schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)
        self.noise_scheduler = _noise_scheduler()
        self.latents, _, self.states = setting.unet_inputs(config)

    @cached_property
    def encode(self) -> Callable[[], tuple[Tensor, Tensor]]:
        """What its VAE and CLIP make of a batch of pictures, decoded already, and captions."""
        return _encoders(self.setting)

    def step_on_line(self) -> None:
        """With VAE and CLIP in every step, as the script comes."""
        self._step(*self.encode())

    def step(self) -> None:
        """With latents and states given."""
        self._step(self.latents, self.states)

    def _step(self, latents: Tensor, states: Tensor) -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
        noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
        with self.setting.autocast():
            prediction = self.unet(noisy, timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.repeat(len(latents)).mean().item()  # of all ranks, for the log
        loss.backward()
        nn.utils.clip_grad_norm_(self.unet.parameters(), MAX_GRAD_NORM)
        self.optimizer.step()
        self.lr_schedule.step()
        self.optimizer.zero_grad()
        self.average.step(self.unet.parameters())
        loss.detach().item()  # for the progress bar


def _encoders(setting: Setting) -> Callable[[], tuple[Tensor, Tensor]]:
    """Of the sizes of Stable Diffusion 1.x, with random weights, in the half precision that the script keeps them in."""
    dtype = torch.bfloat16 if setting.precision == "bf16-mixed" else torch.float32
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
    )
    text = CLIPTextModel(
        CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
    )
    for network in (vae, text):
        network.requires_grad_(False).to(setting.device, dtype)
    side = 8 * setting.latent_size
    pictures = torch.rand(setting.batch_size, 3, side, side, device=setting.device) * 2 - 1
    tokens = torch.randint(0, 49408, (setting.batch_size, 77), device=setting.device)

    def encode() -> tuple[Tensor, Tensor]:
        latents = vae.encode(pictures.to(dtype)).latent_dist.sample() * vae.config.scaling_factor
        return latents, text(tokens, return_dict=False)[0]

    return encode


def mosaicml_step(config: dict[str, Any], setting: Setting) -> Callable[[], None]:
    """A re-creation, not its code, of what mosaicml/diffusion does: float16 with a scaled loss, norms in float16 as Composer
    makes them, plain AdamW, NCHW, eager; latents and states given, no average, no clipping. Attention is torch's, no xFormers.
    """
    with setting.device:
        unet = UNet2DConditionModel.from_config(config)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.forward = _in_half_precision(module)  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    scaler = torch.amp.GradScaler(setting.device.type)
    noise_scheduler = _noise_scheduler()
    latents, _, states = setting.unet_inputs(config)

    def step() -> None:
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device)
        noise = torch.randn_like(latents)
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        with torch.autocast(setting.device.type, torch.float16):
            loss = F.mse_loss(unet(noisy, timesteps, states)["sample"].float(), noise)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def _noise_scheduler() -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)


def _in_half_precision(norm: nn.GroupNorm | nn.LayerNorm) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        weight, bias = norm.weight.half(), norm.bias.half()
        with torch.autocast(x.device.type, enabled=False):
            if isinstance(norm, nn.GroupNorm):
                return F.group_norm(x.half(), norm.num_groups, weight, bias, norm.eps)
            return F.layer_norm(x.half(), norm.normalized_shape, weight, bias, norm.eps)

    return forward

"""Training steps as others take them, on the same network and inputs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from sdscratch.bench.setting import Setting

LR, WEIGHT_DECAY, MAX_GRAD_NORM = 1e-4, 1e-2, 1.0


def diffusers_step(config: dict[str, Any], setting: Setting) -> Callable[[], None]:
    """As diffusers' examples/text_to_image/train_text_to_image.py takes it with --use_ema and its other defaults.

    Its VAE and CLIP are left out, for latents and states are given. The network is in NCHW and eager, AdamW and the average
    are as they come, and the loss is fetched from the device twice.
    """
    unet = UNet2DConditionModel.from_config(config).to(setting.device)
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    average.to(setting.device)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    noise_scheduler = _noise_scheduler()
    latents, _, states = setting.unet_inputs(config)

    def step() -> None:
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (len(latents),), device=latents.device).long()
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        with setting.autocast():
            prediction = unet(noisy, timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), noise.float(), reduction="mean")
        loss.repeat(len(latents)).mean().item()  # of all ranks, for the log
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), MAX_GRAD_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average.step(unet.parameters())
        loss.detach().item()  # for the progress bar

    return step


def mosaicml_step(config: dict[str, Any], setting: Setting) -> Callable[[], None]:
    """A re-creation, not its code, of what mosaicml/diffusion does: float16 with a scaled loss, norms in float16 as Composer
    makes them, plain AdamW, NCHW, eager; latents and states given, no average, no clipping. Attention is torch's, no xFormers.
    """
    unet = UNet2DConditionModel.from_config(config).to(setting.device)
    for module in unet.modules():
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            module.forward = _in_half_precision(module)  # type: ignore[method-assign]
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

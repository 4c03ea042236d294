"""One forward and backward pass of the network, beside diffusers' with the same weights and inputs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.timing import Comparison, race
from sdscratch.bench.work import unet_inputs, work_of
from sdscratch.models import UNet
from sdscratch.models.regions import compile_network

OURS, PEER = "sdscratch", "diffusers"


def bench_unet(network: UNet, setting: Setting) -> Findings:
    """Passes per second beside diffusers, and what needs no clock: kernels, bytes and kept activations of a step."""
    ours = network.to(setting.device)
    theirs = UNet2DConditionModel.from_config(ours.config).to(setting.device)
    theirs.load_state_dict(ours.state_dict())
    latents, timesteps, states = setting.unet_inputs(ours.config)
    in_layout = latents.contiguous(memory_format=setting.memory_format)
    ours.to(memory_format=setting.memory_format)
    compile_network(ours, setting.compile)
    contenders = {
        OURS: _step(ours, lambda: ours(in_layout, timesteps, states), setting.autocast),
        PEER: _step(theirs, lambda: theirs(latents, timesteps, states).sample, setting.autocast),
    }
    laps = race(contenders, setting.rounds, setting.device, PEER, setting.until)
    floor, goal = (1.4, 1.6) if setting.on_cuda else (0.97, 1.05)
    compared = Comparison.of("UNet, forward and backward", laps, OURS, PEER, floor, goal)
    return Findings([compared], list(_counted(ours.config, setting)))


def _step(
    network: nn.Module, predict: Callable[[], Tensor], autocast: Callable[[], AbstractContextManager]
) -> Callable:
    def step() -> None:
        with autocast():
            loss = predict().float().square().mean()
        loss.backward()
        for weight in network.parameters():
            weight.grad = None

    return step


def _counted(config: dict, setting: Setting) -> list[Fact]:
    shapes = unet_inputs(config, setting.batch_size, setting.latent_size)
    layout = setting.memory_format
    ours = work_of(lambda: UNet.from_config(config), shapes, memory_format=layout)
    theirs = work_of(lambda: UNet2DConditionModel.from_config(config), shapes)
    return [
        Fact("kernels of a step, of diffusers'", ours.kernels / theirs.kernels, "times", 0.85),
        Fact("bytes touched per image, of diffusers'", ours.bytes_touched / theirs.bytes_touched, "times", 0.9),
        Fact("bytes kept per image, of diffusers'", ours.kept_bytes / theirs.kept_bytes, "times", 0.9),
        Fact("kernels of a step", ours.kernels, ""),
        Fact("bytes touched per image", ours.bytes_touched / 1e9, "GB"),
        Fact("bytes kept per image", ours.kept_bytes / 1e9, "GB"),
    ]

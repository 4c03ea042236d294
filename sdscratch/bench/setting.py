"""What all benchmarks of one call have in common: the device, the sizes, and how long."""

from __future__ import annotations

import gc
import math
import platform
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sdscratch.errors import ConfigError, check_choice, check_whole
from sdscratch.models.regions import HowToCompile

Precision = Literal["32-true", "bf16-mixed"]
PREHEATED_MATRIX = 8192  # its product takes a millisecond on a large GPU


@dataclass(frozen=True)
class Setting:
    """batch_size: pictures per step. latent_size: height and width of latents, an eighth of the pictures'.

    rounds: turns of each contender; until: the end of them, on time.perf_counter, be there two. compile, channels_last,
    memory_budget (see LatentDiffusion): of our network; peers are as they come.
    """

    device: torch.device
    batch_size: int
    latent_size: int
    rounds: int
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: HowToCompile = "no"
    memory_budget: float = 1.0
    until: float = math.inf

    def __post_init__(self) -> None:
        for name in ("batch_size", "latent_size", "rounds"):
            check_whole(name, getattr(self, name))
        check_choice("precision", self.precision, ("32-true", "bf16-mixed"))
        check_choice("compile", self.compile, ("no", "regions", "whole"))
        if self.device.type not in ("cpu", "cuda"):
            raise ConfigError(f"device={self.device} cannot be timed: expected cpu or cuda")
        if self.device.index:  # clocks and Lightning are on the first: peers on another would seem to take no time
            raise ConfigError(
                f"device={self.device} cannot be timed, only the first GPU that is seen: set "
                f"CUDA_VISIBLE_DEVICES={self.device.index} and device={self.device.type}"
            )
        if self.on_cuda and not torch.cuda.is_available():
            raise ConfigError("device=cuda, but torch finds no GPU here: set device=cpu")

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def memory_format(self) -> torch.memory_format:
        """Of our network."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def autocast(self) -> AbstractContextManager:
        """What forward passes run under."""
        mixed = self.precision == "bf16-mixed"
        return torch.autocast(self.device.type, torch.bfloat16) if mixed else nullcontext()

    def unet_inputs(self, config: Mapping[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        """Random latents, timesteps and text states; zeros would flatter a GPU, which draws less power on them."""
        generator = torch.Generator().manual_seed(0)
        size, side = self.batch_size, self.latent_size
        latents = torch.randn(size, config["in_channels"], side, side, generator=generator)
        states = torch.randn(size, 77, config["cross_attention_dim"], generator=generator)
        timesteps = torch.randint(0, 1000, (size,), generator=generator)
        return latents.to(self.device), timesteps.to(self.device), states.to(self.device)

    def about(self) -> dict[str, Any]:
        """Plain JSON: these settings, and the machine."""
        name = torch.cuda.get_device_name(self.device) if self.on_cuda else _processor()
        machine = {"device": name, "torch": torch.__version__, "threads": torch.get_num_threads()}
        settings = {name: value for name, value in asdict(self).items() if name != "until"}
        return {**settings, "device": str(self.device), "machine": machine | {"python": platform.python_version()}}


def preheat(device: torch.device, seconds: float) -> float:
    """Multiply large matrices for so long, which brings a GPU to the clock that it keeps; TFLOP/s of the last quarter."""
    size = PREHEATED_MATRIX
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    start, rates = time.perf_counter(), list[float]()
    while time.perf_counter() - start < seconds:
        before = time.perf_counter()
        for _ in range(50):
            torch.mm(a, b)
        torch.cuda.synchronize(device)
        rates.append(50 * 2 * size**3 / (time.perf_counter() - before) / 1e12)
    last = rates[-max(1, len(rates) // 4) :]
    return sum(last) / len(last)


def forget(device: torch.device) -> None:
    """What was compiled, of which torch keeps only so much, and the memory of what is gone."""
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _processor() -> str:
    with open("/proc/cpuinfo") as file:
        names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    return names[0] if names else platform.processor()

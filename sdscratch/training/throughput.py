"""How well the machine is used: samples per second, waiting for data, memory, and the share of its arithmetic (MFU)."""

from __future__ import annotations

import re
import resource
import sys
import time
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.training.stage import Stage

PEAK_TFLOPS = {
    "A100": 312.0,
    "B200": 2250.0,
    "H100": 989.0,
    "H100 PCIe": 756.0,
    "H200": 989.0,
    "L4": 121.0,
    "L40S": 362.0,
    "RTX 3090": 71.0,
    "RTX 4090": 165.0,
    "RTX 5090": 209.0,
    "RTX PRO 6000 Blackwell": 504.0,
}
"""Dense bfloat16 products with float32 sums, as NVIDIA's data sheets give them, by a part of the device's name."""

SAMPLES_COUNTED = 4
"""Of a micro-batch that may fill the memory only because it is compiled."""


def peak_tflops(device_name: str, precision: str) -> float | None:
    """What the device could do at most in 16-bit precision; None where the table does not know, and for 32 bits."""
    if not precision.startswith(("16", "bf16")):
        return None
    names = [name for name in PEAK_TFLOPS if re.search(rf"\b{re.escape(name)}\b", device_name)]
    return PEAK_TFLOPS[max(names, key=len)] if names else None


def device_name(device: torch.device) -> str:
    """As in `PEAK_TFLOPS`, or the type."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def flops_per_sample(trainer: L.Trainer, module: Stage, batch: Any) -> float:
    """Floating-point operations of a training step per sample, forward and backward, counted on some of a micro-batch.

    Networks that are frozen count with the passes that they really make, and so does what gradient checkpointing computes
    twice. Leaves no trace: no gradient is kept, nothing is drawn, and what is to be compiled is left as it is, for torch would
    never compile what it has first met while operations are counted. To be called on all ranks.
    """
    few = {name: value[:SAMPLES_COUNTED] for name, value in batch.items()}
    trained = [parameter for parameter in module.network.parameters() if parameter.requires_grad]
    countable = (
        sdpa_kernel(SDPBackend.MATH) if module.device.type == "cpu" else nullcontext()
    )  # the CPU's own is not counted
    with (
        torch.compiler.set_stance("force_eager"),
        trainer.precision_plugin.train_step_context(),
        countable,
        FlopCounterMode(display=False) as counter,
    ):
        torch.autograd.grad(module.losses(few)["loss"], trained, allow_unused=True)
    return counter.get_total_flops() / len(few["positions"])


def memory_gb(device: torch.device) -> float:
    """The most memory that the process has held so far, in GB: of tensors on CUDA, otherwise resident in RAM."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Clock:
    """Samples per second, and the share of the time that training waited for data. Stands still while callbacks work."""

    def __init__(self, module: Stage, step: int) -> None:
        self.module, self.step, self.waited = module, step, 0.0
        self.start = self.free_since = self.now()

    def now(self) -> float:
        """Seconds of training, from no fixed beginning."""
        return time.perf_counter() - self.module.seconds_aside

    def batch_arrived(self) -> None:
        """The wait since the last `batch_done` was one for data."""
        self.waited += self.now() - self.free_since

    def batch_done(self) -> None:
        """From here on training waits for the next one."""
        self.free_since = self.now()

    def rates(self, step: int) -> dict[str, float]:
        """Since the last call."""
        now = self.now()
        seconds = max(now - self.start, 1e-9)
        rates = {
            "samples_per_second": (step - self.step) * self.module.global_batch_size / seconds,
            "data_wait": self.waited / seconds,
        }
        self.step, self.start, self.waited = step, now, 0.0
        return rates

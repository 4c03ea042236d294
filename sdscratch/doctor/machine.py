"""What the machine can compute with, each thing tried once."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from sdscratch.doctor.finding import Finding

GPU_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH)
CPU_BACKENDS = (SDPBackend.FLASH_ATTENTION, SDPBackend.MATH)


def device_of(accelerator: str) -> str:
    """cuda, mps or cpu: what a Lightning accelerator of that name computes on here."""
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "mps"
    return "cpu"


def devices(accelerator: str, count: object) -> Iterator[Finding]:
    """The devices, and whether the configured ones are among them. count: of the trainer, a number or Lightning's words."""
    yield Finding("ok", "cpu", f"{os.cpu_count()} cores, {torch.get_num_threads()} threads for arithmetic")
    gpus = torch.cuda.device_count()
    for number in range(gpus):
        about = torch.cuda.get_device_properties(number)
        yield Finding(
            "ok", f"cuda:{number}", f"{about.name}, {about.total_memory / 1e9:.0f} GB, sm_{about.major}{about.minor}"
        )
    if torch.backends.mps.is_available():
        yield Finding("ok", "mps", "the GPU of this Mac")
    if not gpus and shutil.which("nvidia-smi"):
        yield Finding(
            "warn",
            "cuda",
            f"an NVIDIA driver is installed, but torch {torch.__version__} sees no GPU",
            "install a CUDA build of torch that fits the driver (nvidia-smi names its version)",
        )
    if accelerator in ("gpu", "cuda", "mps") and device_of(accelerator) == "cpu":
        yield Finding(
            "fail", "trainer", f"accelerator={accelerator}, but there is none", "trainer=cpu, or trainer=auto"
        )
    elif device_of(accelerator) == "cuda" and beyond(count, gpus):
        yield Finding("fail", "trainer", f"devices={count}, but there are {gpus}", f"trainer.devices={gpus}")


def beyond(devices: object, gpus: int) -> bool:
    """Whether a trainer's devices, a number or indices, are more than there are; not, where it is to take what there is."""
    if isinstance(devices, int):
        return devices > gpus
    return isinstance(devices, Iterable) and not isinstance(devices, str) and max(devices, default=0) >= gpus


def bf16(device: str, precision: str) -> Iterator[Finding]:
    """Arithmetic in bfloat16, and whether the configured precision can be had."""
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        wanted = precision.startswith("bf16")
        yield Finding(
            "fail" if wanted else "ok",
            "bf16",
            "this GPU is too old for bfloat16",
            "trainer.precision=16-mixed" if wanted else "",
        )
        return
    ones = torch.ones(64, 64, dtype=torch.bfloat16, device=device)
    right = bool((ones @ ones == 64).all())
    found = f"works on {device}" if right else f"{device} adds 64 ones in bfloat16 to something else"
    yield Finding("ok" if right else "fail", "bf16", found, "" if right else "update the driver and torch")


def attention(device: str) -> Iterator[Finding]:
    """scaled_dot_product_attention and its gradient by each backend, at 8 heads of 40 channels as in SD 1.x."""
    dtype = torch.float32
    if device == "cuda":
        dtype = torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    backends = GPU_BACKENDS if device == "cuda" else CPU_BACKENDS
    works = [backend.name.partition("_ATTENTION")[0].lower() for backend in backends if _works(backend, device, dtype)]
    found = f"{', '.join(works) or 'no backend'} on {device} in {str(dtype).removeprefix('torch.')}"
    if not works:
        yield Finding("fail", "attention", found, "update the driver and torch")
    elif device == "cuda" and works == ["math"]:
        yield Finding("warn", "attention", f"{found}: slow and large", "update torch; use a GPU of sm_80 or later")
    else:
        yield Finding("ok", "attention", found)


def _works(backend: SDPBackend, device: str, dtype: torch.dtype) -> bool:
    query, key, value = (torch.randn(1, 8, 64, 40, device=device, dtype=dtype, requires_grad=True) for _ in range(3))
    try:
        with warnings.catch_warnings(), sdpa_kernel(backend):
            warnings.simplefilter("ignore")  # why a backend does not apply
            output = scaled_dot_product_attention(query, key, value)
            output.sum().backward()
    except RuntimeError:
        return False
    return bool(output.isfinite().all()) and query.grad is not None and bool(query.grad.isfinite().all())

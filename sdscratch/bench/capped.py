"""The training step on a large card that pretends to be a smaller one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting, forget
from sdscratch.bench.steps import OURS, our_steps
from sdscratch.models import UNet

CAP = 31e9
"""Bytes that a card of 32 GB leaves."""

FITS, SLOWDOWN = "fits under a cap of 31 GB (1: it does)", "slowdown under a cap of 31 GB"


def bench_capped(network: Callable[[], UNet], setting: Setting) -> Findings:
    """Ours with all of the memory and all activations kept, then under the cap and with the setting's memory_budget.

    network: makes a new one, of which nobody else may hold what was made before. A CPU has no cap.
    """
    free = our_steps(network(), replace(setting, memory_budget=1.0)).laps.of(OURS)
    forget(setting.device)
    try:
        if setting.on_cuda:
            whole = torch.cuda.get_device_properties(setting.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, CAP / whole), setting.device.index)
        capped = our_steps(network(), setting).laps.of(OURS)
    except torch.OutOfMemoryError:
        return Findings(facts=[Fact(FITS, 0, "")])
    finally:
        if setting.on_cuda:
            torch.cuda.set_per_process_memory_fraction(1.0, setting.device.index)
    return Findings(facts=[Fact(FITS, 1, ""), Fact(SLOWDOWN, capped / free - 1, "")])

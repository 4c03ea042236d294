"""What the optimizer is given: parameter groups, and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sdscratch.errors import ConfigError, check_whole


def parameter_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices and kernels decay; vectors and scalars (norms, biases, temperatures) do not."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def can_skip(optimizer: Optimizer) -> bool:
    """Whether it can be told by a tensor, which the host need not know, to leave everything as it is: fused ones can."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


@contextmanager
def skipping(optimizer: Optimizer, where: Tensor) -> Iterator[None]:
    """Steps in here change nothing where the tensor () is 1, and are taken where it is 0. For optimizers that `can_skip`."""
    optimizer.found_inf = where  # type: ignore[attr-defined]  # what torch's GradScaler tells them in
    yield
    del optimizer.found_inf  # type: ignore[attr-defined]


def check_next_step(optimizer: Optimizer) -> None:
    """Raise ConfigError unless it can take a step from where it is: tried with copies of the smallest tensor of each group.

    What an optimizer makes of dense gradients, of a device, or of a state that was written under other settings, it says no
    sooner than at its step.
    """
    groups = [dict(group) for group in optimizer.param_groups if group["params"]]
    smallest = [min(group["params"], key=torch.numel) for group in groups]
    for group, parameter in zip(groups, smallest, strict=True):
        group["params"] = [nn.Parameter(parameter.detach().clone())]
        group["params"][0].grad = torch.zeros_like(parameter)
    name = type(optimizer).__name__
    try:
        trial = type(optimizer)(groups)  # type: ignore[call-arg]
        trial.defaults |= optimizer.defaults
        for group, parameter in zip(groups, smallest, strict=True):
            if parameter in optimizer.state:
                trial.state[group["params"][0]] = deepcopy(optimizer.state[parameter])
        trial.step()
    except Exception as error:  # each optimizer has its own way to say so
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(
            f"optimizer: {name} cannot take the next step with these settings ({reason}). Set back what was changed, "
            "or choose another option of optimizer="
        ) from error


class WarmupCosine:
    """Learning-rate factor in [0, 1]: linear warm-up, then half a cosine down to `final` at the last step.

    Of optimizer step s = 0, 1, ..., with n = s + 1:
    factor = n / warmup_steps                                                       while n <= warmup_steps
           = final + (1 - final) * (1 + cos(pi * (n - warmup) / (total - warmup))) / 2      until n = total
           = final                                                                          afterwards
    A run that is shorter than its warm-up ends before the peak.
    It has no state, so a resumed or changed run gets exactly what its own configuration says.
    """

    def __init__(self, total_steps: int, warmup_steps: int = 0, final: float = 0.1) -> None:
        check_whole("lr_schedule.warmup_steps", warmup_steps, 0)
        if not 0 <= final <= 1:
            raise ConfigError(f"lr_schedule.final is {final}: expected a share of the peak, in [0, 1]")
        self.total_steps, self.warmup_steps, self.final = total_steps, warmup_steps, final

    def __call__(self, step: int) -> float:
        number = step + 1
        if number <= self.warmup_steps:
            return number / self.warmup_steps
        if number >= self.total_steps:
            return self.final
        progress = (number - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        return self.final + (1 - self.final) * (1 + math.cos(math.pi * progress)) / 2


class WarmupConstant:
    """Learning-rate factor in (0, 1]: linear warm-up over `warmup_steps`, then 1."""

    def __init__(self, warmup_steps: int = 0) -> None:
        check_whole("lr_schedule.warmup_steps", warmup_steps, 0)
        self.warmup_steps = warmup_steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / max(1, self.warmup_steps))

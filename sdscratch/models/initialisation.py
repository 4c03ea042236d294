"""First weights that let a small network learn at once."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def preserve_variance(network: nn.Module) -> None:
    """Convolutions that keep the variance of what passes through, and residual blocks that start as the identity.

    Weights ~ U(-b, b), b = sqrt(3 / fan_in), where PyTorch's default is b = sqrt(1 / fan_in), which loses two thirds of the
    variance at each layer; `conv2`, the last of each residual block of diffusers' networks, starts at 0. In place.
    """
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, nonlinearity="linear")
            if module.bias is not None:
                module.bias.zero_()
        if name.endswith("conv2"):
            module.weight.zero_()

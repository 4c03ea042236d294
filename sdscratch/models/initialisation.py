"""First weights that let a small network learn at once."""

from __future__ import annotations

import torch
from torch import nn
from transformers import CLIPModel


def new_embeddings(clip: CLIPModel) -> None:
    """Embeddings of the size of what the layers add to them, so that a small CLIP keeps words and places apart. In place.

    With CLIP's own (0.02 and 0.01) a text state says little of its own word until the layers have learnt to pass it on,
    and a small image tower is slow to see where things are; a UNet that reads such states learns late which word is which.
    """
    text, vision = clip.text_model.embeddings, clip.vision_model.embeddings
    nn.init.normal_(text.token_embedding.weight, std=1.0)
    nn.init.normal_(text.position_embedding.weight, std=0.3)
    nn.init.normal_(vision.position_embedding.weight, std=0.3)


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

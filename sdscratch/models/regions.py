"""A network compiled in regions: each kind of block once, instead of the whole in one piece.

Blocks that repeat share what was compiled, so a first step comes in a minute rather than many, and gradients are sent between
devices while earlier blocks are still at work. Weights keep their names.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from sdscratch.errors import check_choice
from sdscratch.models import blocks, released_unet

HowToCompile = Literal["no", "regions", "whole"]
REGIONS = (blocks.ResBlock, blocks.TransformerBlock, released_unet.ResBlock)

MOST_VARIANTS = 64
"""A block's code is shared by some 20 of different sizes, each compiled apart; torch gives up after 8."""

LAYOUT_IS_LOST = ("2.12.", "2.13.", "2.14.")
"""Versions of torch whose compiler lays gradients of convolutions out with channels outermost, unless it is told otherwise."""


def compile_network(network: nn.Module, how: HowToCompile, budget: float = 1.0, backend: str = "inductor") -> None:
    """In place, for what follows: regions, the whole network as one, or nothing. Sizes are fixed: each new one compiles anew.

    budget: the share of activations that the forward pass may keep for the backward pass, which computes the others again.
    """
    check_choice("compile", how, ("no", "regions", "whole"))
    if how == "no":
        return
    torch._dynamo.config.recompile_limit = MOST_VARIANTS
    torch._functorch.config.activation_memory_budget = budget
    # On several devices torch cuts what it compiles wherever a bucket of gradients is full; regions are small enough.
    torch._dynamo.config.optimize_ddp = how == "whole"
    if torch.__version__.startswith(LAYOUT_IS_LOST) and next(network.parameters()).is_cuda:
        torch._inductor.config.force_layout_optimization = True
    regions = [network] if how == "whole" else [module for module in network.modules() if isinstance(module, REGIONS)]
    for region in regions:
        region.compile(backend=backend, dynamic=False)

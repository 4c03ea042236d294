"""Faults on demand, for the tests of what guards against them."""

from __future__ import annotations

import os
import re
from functools import lru_cache

from torch import Tensor

from sdscratch.errors import ConfigError

VARIABLE = "SDS_INJECT"
"""Such as "nan@7:1,spike@12": kinds of bad numbers, each at a data step, on one rank or on all."""

FAULT = re.compile(r"(nan|inf|spike|grad)@(\d+)(?::(\d+))?")


def disturb(loss: Tensor, data_step: int, rank: int) -> Tensor:
    """`loss`, unless SDS_INJECT wants it otherwise here: nan, inf, spike (a hundredfold), grad (a nan in gradients only)."""
    for kind, step, only_rank in _wanted(os.environ.get(VARIABLE, "")):
        if step == data_step and only_rank in (rank, None):
            if kind == "grad":
                loss = loss + 0  # a node of its own: the hook below would outlive a tensor that others hold
                loss.register_hook(lambda gradient: gradient * float("nan"))
            else:
                loss = loss * {"nan": float("nan"), "inf": float("inf"), "spike": 100.0}[kind]
    return loss


@lru_cache
def _wanted(text: str) -> list[tuple[str, int, int | None]]:
    faults = []
    for fault in filter(None, text.split(",")):
        if not (found := FAULT.fullmatch(fault)):
            raise ConfigError(
                f"{VARIABLE}={text}: {fault} is no fault; expected such as nan@7,inf@9:1,grad@11,spike@20"
            )
        kind, step, rank = found.groups()
        faults.append((kind, int(step), int(rank) if rank else None))
    return faults

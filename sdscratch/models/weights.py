"""Weights into networks, strictly: every tensor finds its place, or none is taken."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

MOST_NAMES = 6


def misfits(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """What keeps `weights` from taking the place of `expected`: tensors that are missing, unexpected or of another shape."""
    reshaped = [
        f"{name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    found = {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": reshaped,
    }
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in found.items() if names]


def _some(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")

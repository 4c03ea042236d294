"""Files of weights made elsewhere: safetensors, or pickles as far as they are tensors and plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sdscratch.errors import DataError
from sdscratch.models.weights import misfits


def read_weight_file(path: Path) -> dict[str, Any]:
    """What is in the file, on the CPU; of pickles only what is looked at is read. Nothing in it can run code.

    Raises DataError where it is absent, damaged, or holds more than tensors and plain values.
    """
    if not path.is_file():
        raise DataError(f"there is no file {path}: expected weights, as .safetensors, .ckpt or .pt")
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    except SafetensorError as error:
        raise DataError(f"{path} is damaged, or no safetensors: {error}. Get it once more") from error
    except Exception as error:  # a file that is none of torch's, or would run code, raises nearly anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        found = f"loading it would call {named[1]}" if named else f"it is damaged ({type(error).__name__})"
        raise DataError(
            f"{path} is refused: {found}. Expected tensors and plain values only: look for the weights as safetensors"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__}, expected weights by their names")
    return content


def _read_pickle(path: Path) -> Any:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"  # older files of torch cannot be mapped
    return torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)


def tensors_of(content: object, where: str) -> dict[str, Tensor]:
    """`content`, which has to be tensors by name. Raises DataError that begins with `where`."""
    if not isinstance(content, Mapping) or not all(isinstance(name, str) for name in content):
        raise DataError(f"{where} holds a {type(content).__name__}, expected tensors by their names")
    odd = next((name for name, value in content.items() if not _is_plain(value)), None)
    if odd is not None:
        raise DataError(f"{where}: {odd} is a {type(content[odd]).__name__}, expected a dense tensor of real numbers")
    return dict(content)


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type == "cpu"
        and not (value.is_complex() or value.is_quantized)
    )


def fill(network: nn.Module, weights: Mapping[str, Tensor], where: str, partial: bool = False) -> list[str]:
    """Put `weights` into the network, strictly, in its own dtype. where: how messages begin.

    partial: take what fits, leave the rest of the network as it is, and return what did not fit, one line per kind.
    Raises DataError that names tensors which are missing, unexpected, of another shape, or not finite.
    """
    expected = network.state_dict()
    problems = misfits(weights, expected)
    if problems and not partial:
        raise DataError(f"{where} does not fit: {'; '.join(problems)}. partial=true takes what does")
    fitting = {name: w for name, w in weights.items() if name in expected and w.shape == expected[name].shape}
    if not fitting:
        raise DataError(f"{where} does not fit: none of its {len(weights)} tensors has a place in this network")
    check_finite(fitting, where)
    network.load_state_dict(fitting, strict=False)
    return problems


def check_finite(weights: Mapping[str, Tensor], where: str) -> None:
    """Raises DataError that names the first tensor with a number that is none."""
    for name, weight in weights.items():
        if not bool(torch.isfinite(weight).all()):
            raise DataError(f"{where}: {name} is not finite. The file is damaged, or its training had diverged")

"""Files that run code when they are read carelessly: each would leave a canary."""

from __future__ import annotations

import builtins
import functools
import io
import os
import pickle
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


class Gadget:
    """What pickle rebuilds by calling `function(*arguments)`."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


class State:
    """Whose state is set by calling it: pickle's BUILD."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os._wrap_close, (None, None), {"close": Gadget(os.system, f"touch {self.canary}")}


def gadgets(canary: Path) -> dict[str, Any]:
    """Objects that touch `canary` when pickle rebuilds them, each by another way."""
    code = f"open({str(canary)!r}, 'w').close()"
    array = np.empty(1, object)
    array[0] = Gadget(os.system, f"touch {canary}")
    return {
        "os.system": Gadget(os.system, f"touch {canary}"),
        "eval": Gadget(builtins.eval, code),
        "exec": Gadget(builtins.exec, code),
        "subprocess": Gadget(subprocess.check_call, ["touch", str(canary)]),
        "method of a class": Gadget(Path.touch, canary),
        "partial": Gadget(functools.partial(os.system, f"touch {canary}")),
        "state": State(canary),
        "numpy object array": array,
        "deep inside": {"state_dict": [{"weight": (torch.zeros(2), Gadget(os.system, f"touch {canary}"))}]},
        "a file that torch would load": Gadget(functools.partial(torch.load, weights_only=False), _nested(canary)),
    }


def _nested(canary: Path) -> Any:
    return Gadget(io.BytesIO, as_torch(Gadget(os.system, f"touch {canary}")))


def as_pickle(content: Any, protocol: int = 2) -> bytes:
    return pickle.dumps(content, protocol)


def as_torch(content: Any) -> bytes:
    """The zip that torch.save writes today."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def as_old_torch(content: Any) -> bytes:
    """Pickles one after the other, as torch.save wrote before 1.6."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def as_npy(content: Any) -> bytes:
    """An array of one object."""
    array, file = np.empty(1, object), io.BytesIO()
    array[0] = content
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def as_zip_of_pickles(content: Any) -> bytes:
    """An .npz, or a checkpoint with a foreign layout."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", as_pickle(content))
        archive.writestr("archive/version", "3")
    return file.getvalue()


FORMATS: dict[str, Callable[[Any], bytes]] = {
    "pickle": as_pickle,
    "torch": as_torch,
    "old torch": as_old_torch,
    "npy": as_npy,
    "zip": as_zip_of_pickles,
}

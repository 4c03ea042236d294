"""What a `_target_` may name. A configuration chooses parts; it must not be able to run programs or load files."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from sdscratch.config.words import did_you_mean, first_line
from sdscratch.errors import ConfigError

PACKAGES = (
    "sdscratch",
    "torch.optim",
    "lightning",
    "diffusers",
    "transformers",
    "bitsandbytes.optim",
    "kornia.augmentation",
)
EXTRAS = {"bitsandbytes": "optim8bit", "kornia": "augment"}
"""What brings packages that not everyone has."""

CLOSED = {"cli", "commands", "config", "modular_pipelines", "pipelines", "testing_utils"}
"""Rooms of these packages that drive programs or load from the hub, and hold no part of a run."""


def find_target(path: str) -> Callable[..., Any]:
    """The class or function at a dotted path such as `sdscratch.models.UNet`, imported.

    Allowed is what sdscratch itself defines, and classes that the other PACKAGES define. Every step must be a module of
    that very name, then at most a class: `sdscratch.randomness.np.load` walks through another module; foreign
    `from_pretrained`, `load_*`, `run_*` and the like are no classes.
    Raises ConfigError.
    """
    check_name(path)
    owner, found = _walk(path.split("."))
    home = str(getattr(found, "__module__", ""))
    if not (inspect.isclass(found) or inspect.isfunction(found) or inspect.ismethod(found)) or not inside(home):
        raise ConfigError(f"{path!r} is not allowed: it is no class or function of {', '.join(PACKAGES)}")
    check_home(path, home, is_class=inspect.isclass(found) and isinstance(owner, ModuleType))
    return found


def check_name(path: object) -> None:
    """Raise ConfigError for paths that are refused whatever they lead to."""
    if not isinstance(path, str) or not inside(path):
        raise ConfigError(f"{path!r} is not allowed: a _target_ begins with {', '.join(p + '.' for p in PACKAGES)}")
    names = path.split(".")
    if any(not name.isidentifier() or name.startswith("_") for name in names):
        raise ConfigError(f"{path!r} is not allowed: it names something private, or nothing at all")
    if closed := CLOSED.intersection(names):
        raise ConfigError(f"{path!r} is not allowed: {', '.join(sorted(closed))} holds no part of a run")


def check_home(path: str, home: str, is_class: bool) -> None:
    """Raise ConfigError where the module that defines the target, `home`, may not give it. is_class: of that module."""
    if CLOSED.intersection(home.split(".")):
        raise ConfigError(f"{path!r} is not allowed: {home}, where it is defined, holds no part of a run")
    package = home.partition(".")[0]
    if package != "sdscratch" and not is_class:
        raise ConfigError(f"{path!r} is not allowed: of {package}, only classes may be named")


def inside(path: str) -> bool:
    """Whether a dotted path lies in one of the allowed packages."""
    return any(path == package or path.startswith(package + ".") for package in PACKAGES)


def _walk(names: list[str]) -> tuple[Any, Any]:
    """What the names lead to, and what holds it, importing modules on the way."""
    owner: Any = None
    found: Any = None
    for depth, name in enumerate(names, start=1):
        path, owner = ".".join(names[:depth]), found
        try:
            is_module = owner is None or (isinstance(owner, ModuleType) and not hasattr(owner, name))
            found = import_module(path) if is_module else getattr(owner, name)
        except Exception as error:  # an import may fail in any way
            if path in EXTRAS and getattr(error, "name", None) == path:
                remedy = f"pip install 'sdscratch[{EXTRAS[path]}]'"
                raise ConfigError(f"{'.'.join(names)} needs {path}, which is not installed: {remedy}") from error
            if isinstance(error, AttributeError) or getattr(error, "name", None) == path:
                submodules = [module.name for module in iter_modules(getattr(owner, "__path__", []))]
                raise ConfigError(f"there is no {path!r}{did_you_mean(name, [*dir(owner), *submodules])}") from error
            raise ConfigError(f"cannot import {path}: {type(error).__name__}: {first_line(error)}") from error
        if isinstance(found, ModuleType) and found.__name__ != path:
            raise ConfigError(f"{'.'.join(names)!r} is not allowed: {path} is the module {found.__name__}")
    return owner, found

"""Signatures read from source text, so that a wrong configuration is refused without the seconds that torch takes to load.

Only what can be read with certainty is: definitions reached through plain imports, decorators that keep signatures.
For anything else the answer is None, and the caller imports.
"""

from __future__ import annotations

import ast
import inspect
from typing import Any, NamedTuple

TYPING = ("typing", "collections.abc", "pathlib")
KEEP_SIGNATURES = ("classmethod", "dataclass", "register_to_config", "_defaults_from_env_vars")


class Import(NamedTuple):
    """`from module import name`."""

    module: str
    name: str


class Definition(NamedTuple):
    """A statement or expression, and the module whose names it uses."""

    module: str
    node: ast.AST


def read_signature(path: str) -> tuple[str, inspect.Signature] | None:
    """The module that defines the class or function at a dotted path, and its signature with annotations evaluated.

    Types that only an import would give are stand-ins of that name. None where the source does not tell.
    """
    *owner, name = path.split(".")
    if found := _find(".".join(owner), name):
        if isinstance(found.node, ast.ClassDef):
            parameters = _class_parameters(found)
        else:
            parameters = _function_parameters(found, bound=False)
    elif len(owner) > 1 and (found := _find(".".join(owner[:-1]), owner[-1])):
        method = _method(found, name)
        parameters = (
            _function_parameters(method, bound=True) if method and _decorators(method) == ["classmethod"] else None
        )
    else:
        return None
    return None if parameters is None else (found.module, inspect.Signature(parameters))


def _function_parameters(found: Definition, bound: bool) -> list[inspect.Parameter] | None:
    function = found.node
    if not isinstance(function, ast.FunctionDef) or not set(_decorators(found)) <= set(KEEP_SIGNATURES):
        return None
    a = function.args
    positional = [*a.posonlyargs, *a.args]
    defaults: list[Any] = [None] * (len(positional) - len(a.defaults)) + a.defaults
    kinds = inspect.Parameter
    rows = [
        (argument, kinds.POSITIONAL_OR_KEYWORD, default) for argument, default in zip(positional, defaults, strict=True)
    ]
    rows += [(argument, kinds.VAR_POSITIONAL, None) for argument in [a.vararg] if argument]
    rows += [
        (argument, kinds.KEYWORD_ONLY, default) for argument, default in zip(a.kwonlyargs, a.kw_defaults, strict=True)
    ]
    rows += [(argument, kinds.VAR_KEYWORD, None) for argument in [a.kwarg] if argument]
    return [
        _parameter(found.module, argument.arg, kind, argument.annotation, default)
        for argument, kind, default in rows[bound:]
    ]


def _class_parameters(found: Definition) -> list[inspect.Parameter] | None:
    decorators = _decorators(found)
    if not set(decorators) <= set(KEEP_SIGNATURES) or _method(found, "__new__"):
        return None
    if init := _method(found, "__init__"):
        return _function_parameters(init, bound=True)
    bases = [_find(found.module, base.id) if isinstance(base, ast.Name) else None for base in found.node.bases]
    if "dataclass" in decorators:
        return _dataclass_parameters(found, bases)
    return _class_parameters(bases[0]) if len(bases) == 1 and bases[0] else None if bases else []

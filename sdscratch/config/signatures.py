"""What a class or function takes, and whether a value from YAML fits an annotation."""

from __future__ import annotations

import ast
import collections.abc
import inspect
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sdscratch.config.sources import read_signature
from sdscratch.config.targets import check_home, check_name, find_target

LISTS = (list, set, frozenset, collections.abc.Sequence, collections.abc.Iterable, collections.abc.Collection)
DICTS = (dict, collections.abc.Mapping, collections.abc.MutableMapping)


@dataclass(frozen=True)
class Built:
    """Stands for the object that a `_target_` node will become."""

    target: str


UNKNOWN = object()
"""A value that cannot be judged, because what is wrong with it was said elsewhere. Fits everything."""


@dataclass(frozen=True)
class Signature:
    """hints: annotation by parameter, Any where there is none to rely on. open, more_positional: takes **, takes *."""

    hints: dict[str, Any]
    positional: tuple[str, ...]
    required: tuple[str, ...]
    open: bool
    more_positional: bool


@cache
def signature(target: str) -> Signature:
    """What a `_target_` takes, from its source where that tells, else by importing it.

    Raises ConfigError where the target is not allowed or not there.
    """
    check_name(target)
    if read := read_signature(target):
        found, taken = read
        check_home(target, found.module, is_class=isinstance(found.node, ast.ClassDef))
        return _signature(taken, {})
    factory = find_target(target)
    code = inspect.unwrap(factory.__init__ if inspect.isclass(factory) else factory)
    return _signature(inspect.signature(factory), getattr(code, "__globals__", {}))


def _signature(taken: inspect.Signature, namespace: dict[str, Any]) -> Signature:
    parameters = taken.parameters.values()
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return Signature(
        hints={p.name: _hint(p, namespace) for p in named},
        positional=tuple(p.name for p in named if p.kind is not p.KEYWORD_ONLY),
        required=tuple(p.name for p in named if p.default is p.empty),
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
        more_positional=any(p.kind is p.VAR_POSITIONAL for p in parameters),
    )


def _hint(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            hint = get_type_hints(types.SimpleNamespace(__annotations__={"hint": hint}), namespace)["hint"]
        except Exception:  # a name that is imported for type checkers only
            return Any
    if hint in (parameter.empty, Any):
        return Any
    return Union[hint, None] if parameter.default is None else hint  # noqa: UP007


def fits(value: object, hint: Any) -> bool:
    """Whether a plain value, or Built, may be passed where `hint` is annotated. Generous where it cannot tell.

    A bool is no int, an int is a float, a str is a path, a list is any sequence.
    """
    return _judge(value, hint) is not False


def _judge(value: object, hint: Any) -> bool | None:
    """True, False, or None for annotations that say nothing about plain values, such as a Tensor."""
    kind, args = get_origin(hint) or hint, get_args(hint)
    if value is UNKNOWN or hint in (Any, object):
        return True
    if kind is Annotated:
        return _judge(value, args[0])
    if kind in (Union, types.UnionType):  # in `float | Tensor` the float decides
        verdicts = [_judge(value, arg) for arg in args if arg is not type(None) or value is None]
        if isinstance(value, Built) and None in verdicts:
            return None  # `str | Strategy` may well be an object
        return True if True in verdicts else False if False in verdicts else None
    if kind is Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if value is None or hint in (None, type(None)):
        return hint in (None, type(None)) if value is None else False
    if kind in (bool, str):
        return isinstance(value, kind)
    if kind in (int, float):
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    if inspect.isclass(kind) and issubclass(kind, PurePath):
        return isinstance(value, (str, Built))
    if isinstance(value, Built):
        return None
    if kind is tuple:
        return isinstance(value, list) and _fits_tuple(value, args)
    if kind in LISTS:
        return isinstance(value, list) and all(fits(item, arg) for item in value for arg in args)
    if kind in DICTS:
        return isinstance(value, dict) and all(fits(item, arg) for item in value.values() for arg in args[1:])
    return False if kind is collections.abc.Callable else None


def _fits_tuple(values: list[Any], args: tuple[Any, ...]) -> bool:
    if len(args) <= 1 or args[-1] is Ellipsis:  # diffusers writes tuple[int] for any length
        return all(fits(value, arg) for value in values for arg in args[:1])
    return len(values) == len(args) and all(fits(value, arg) for value, arg in zip(values, args, strict=True))


def choices(hint: Any) -> list[str]:
    """The strings that a Literal annotation lists, alone or in a union."""
    if get_origin(hint) is Literal:
        return [arg for arg in get_args(hint) if isinstance(arg, str)]
    return [choice for arg in get_args(hint) for choice in choices(arg)]


def say_hint(hint: Any) -> str:
    """An annotation as a reader would write it: `int | None`, `'epsilon' | 'v_prediction'`."""
    if get_origin(hint) in (Union, types.UnionType):
        return " | ".join(say_hint(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return " | ".join(repr(arg) for arg in get_args(hint))
    return "null" if hint is type(None) else inspect.formatannotation(hint)


def say_value(value: object) -> str:
    """A value as YAML writes it, in a few words."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, Built):
        return f"an object, {value.target}"
    if isinstance(value, str):
        return f"the string {value!r}"
    if isinstance(value, Mapping):
        return "a section"
    return str(list(value))[:60] if isinstance(value, Sequence) else repr(value)


def how_to_write(value: object, hint: Any) -> str:
    """The remedy for a misfit that YAML and the command line invite, or nothing."""
    if isinstance(value, str) and fits(0.5, hint):
        try:
            float(value)
        except ValueError:
            return ""
        return "; write numbers without quotes and with a point, as in 1.0e-4"
    if isinstance(value, float) and value.is_integer() and fits(0, hint):
        return f"; write {value:.0f}"
    if fits("", hint) and isinstance(value, (int, float)):
        return "; in quotes it is a string"
    return ""

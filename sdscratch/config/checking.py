"""Do the objects of a configuration fit the code? Found out before anything is built, and said all at once."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import InterpolationToMissingValueError, MissingMandatoryValue, OmegaConfBaseException

from sdscratch.config.declared import plain_problems
from sdscratch.config.signatures import (
    UNKNOWN,
    Built,
    Signature,
    choices,
    fits,
    how_to_write,
    say_hint,
    say_value,
    signature,
)
from sdscratch.config.targets import check_name
from sdscratch.config.words import did_you_mean, first_line, join, screen
from sdscratch.errors import ConfigError

HEADLINE = "the configuration does not fit the code:"
MISSING = object()  # ???
UNWRITABLE = re.compile("[\0\ud800-\udfff]")
NOT_SET = ": required, but not set"


def check_config(cfg: DictConfig, declared: DictConfig | None = None) -> None:
    """Raise one ConfigError that names every key which the code would not accept. Nothing is built.

    Each `_target_` node, nested ones included, is bound to the signature of what it names: unknown and missing keys,
    values of another type, targets that are not allowed or cannot be imported. Everywhere: `???`, and interpolations
    that lead nowhere. A node with `_partial_: true` may leave out what the code adds later.

    declared: what says which keys there may be outside the objects, and of which types; `compose` has seen to that.
    """
    if problems := [*(plain_problems(cfg, declared) if declared is not None else []), *object_problems(cfg)]:
        raise ConfigError(screen(HEADLINE, problems))


def missing_keys(cfg: DictConfig) -> list[str]:
    """The dotted keys that are ???, but for those which the code adds to partial objects."""
    return [problem.removesuffix(NOT_SET) for problem in object_problems(cfg) if problem.endswith(NOT_SET)]


def object_problems(cfg: DictConfig) -> list[str]:
    """What check_config finds: one line per problem, beginning with the dotted key."""
    problems: list[str] = []
    try:
        _examine(cfg, "", problems)
    except RecursionError:
        problems.append("an interpolation contains itself")
    return problems


def _examine(node: Any, key: str, problems: list[str]) -> Any:
    """The plain value of a node, with Built in place of objects. Adds to `problems` what is wrong in it."""
    if isinstance(node, ListConfig):
        keys: dict[Any, str] = {i: f"{key}[{i}]" for i in range(len(node))}
    elif isinstance(node, DictConfig):
        keys = {name: join(key, name) for name in node}
    else:
        return node
    values = {name: _value(node, name, keys[name], problems) for name in keys}
    if values.get("_partial_") is True:
        values = {name: value for name, value in values.items() if value is not MISSING}
    for name in [name for name, value in values.items() if value is MISSING]:
        problems.append(f"{keys[name]}{NOT_SET}")
        values[name] = UNKNOWN
    if isinstance(node, ListConfig):
        return list(values.values())
    return _bind(node, values, key, problems) if "_target_" in values else values


def _value(node: DictConfig | ListConfig, name: Any, key: str, problems: list[str]) -> Any:
    try:
        value = node[name]
    except MissingMandatoryValue:
        return MISSING
    except InterpolationToMissingValueError:  # the missing key itself is reported
        return UNKNOWN
    except OmegaConfBaseException as error:
        problems.append(f"{key}: {first_line(error)}")
        return UNKNOWN
    if isinstance(value, str) and UNWRITABLE.search(value):
        problems.append(f"{key}: holds a NUL or half a character (a lone surrogate), which no file takes")
        return UNKNOWN
    return _examine(value, key, problems)


def _bind(node: DictConfig, values: dict[Any, Any], key: str, problems: list[str]) -> Any:
    """Bind the values of a `_target_` node as the call would."""
    # No _convert_: every object gets plain lists and dicts.
    target, arguments = values.pop("_target_"), values.pop("_args_", [])
    partial, recursive = values.pop("_partial_", False), values.pop("_recursive_", True)
    for name, flag in (("_partial_", partial), ("_recursive_", recursive)):
        if not isinstance(flag, bool):
            problems.append(f"{join(key, name)}: expected bool, found {say_value(flag)}")
    try:
        check_name(target)
        takes = signature(target)
    except ConfigError as error:
        problems.append(f"{join(key, '_target_')}: {error}")
        return UNKNOWN
    if not isinstance(arguments, list) or (len(arguments) > len(takes.positional) and not takes.more_positional):
        problems.append(f"{join(key, '_args_')}: {target} takes a list of at most {len(takes.positional)}")
        return Built(target)
    given = dict(zip(takes.positional, arguments, strict=False))
    problems += [f"{join(key, name)}: given twice, by name and by _args_" for name in given if name in values]
    given.update(values)
    for name, value in given.items():
        if problem := _misfit(name, value, takes, free=[known for known in takes.hints if known not in given]):
            copied = _copied(node, name) if name in takes.hints else ""
            said = f"{copied}: {join(key, name)}" if copied else f"{join(key, name)}: {target}"
            problems.append(f"{said} {problem}")
    if not partial:
        problems += [f"{join(key, n)}: required by {target}, but not set" for n in takes.required if n not in given]
    return Built(target)


def _copied(node: DictConfig, name: str) -> str:
    """The key whose value this one is, by an interpolation of nothing else: that is where the user has set it."""
    written = OmegaConf.to_container(node, resolve=False)
    assert isinstance(written, dict)
    copy = re.fullmatch(r"\$\{(\w[\w.]*)\}", str(written.get(name)))
    return copy[1] if copy else ""


def _misfit(name: str, value: Any, takes: Signature, free: list[str]) -> str:
    """What is wrong with one argument, or nothing. free: the parameters that nothing was given for."""
    if name not in takes.hints:
        if takes.open:  # **kwargs would swallow a misspelt key in silence
            near = get_close_matches(name, free, n=1, cutoff=0.85)
            return f"names no such argument; did you mean {near[0]!r}?" if near else ""
        suggestion = did_you_mean(name, free) or did_you_mean(name, takes.hints)
        return f"takes no such argument{suggestion or '; it takes ' + (', '.join(takes.hints) or 'none')}"
    hint = takes.hints[name]
    if fits(value, hint):
        return ""
    suggestion = did_you_mean(value, choices(hint)) if isinstance(value, str) else ""
    return f"takes {say_hint(hint)}, found {say_value(value)}{suggestion or how_to_write(value, hint)}"

"""Outside the objects no signature tells what a key may be: there the primary config and its groups declare it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sdscratch.config.signatures import UNKNOWN, fits, how_to_write, say_value
from sdscratch.config.words import did_you_mean, join


def plain_problems(cfg: DictConfig, declared: DictConfig, key: str = "") -> list[str]:
    """Keys of the composed `cfg` that nothing reads, and values of another type than the declared default.

    declared: what the primary config and its groups say, without phase, experiment and command line. null and ??? there
    take any value, an empty mapping any keys; objects may be switched off with null, and a section gain further ones.
    """
    names: list[Any] = list(cfg.keys())  # `in` would not see a key whose value is ???
    known = set(declared.keys())
    problems = [f"{join(key, name)}: removed, but needed" for name in sorted(known.difference(names), key=str)]
    for name in names:
        here, value = join(key, name), value_at(cfg, name)
        if name not in known:
            if not (key and _is_object(value)):
                problems.append(f"{here}: nothing reads this key{did_you_mean(here, dotted_keys(declared, key))}")
            continue
        default = UNKNOWN if OmegaConf.is_interpolation(declared, name) else value_at(declared, name)
        if isinstance(default, DictConfig) and isinstance(value, DictConfig):
            if default and not _is_object(default):
                problems += plain_problems(value, default, here)
        elif value is not UNKNOWN and (problem := _misfit(value, default)):
            problems.append(f"{here}: {problem}")
    return problems


def dotted_keys(node: DictConfig, key: str = "") -> Iterator[str]:
    """Every key below a node, sections included."""
    for name in node:
        yield join(key, name)
        if isinstance(value := value_at(node, name), DictConfig):
            yield from dotted_keys(value, join(key, name))


def value_at(node: DictConfig, name: Any) -> Any:
    """The value with interpolations followed, UNKNOWN where it is ??? or leads nowhere (check_config reports that)."""
    try:
        return node[name]
    except (OmegaConfBaseException, RecursionError):
        return UNKNOWN


def _is_object(value: Any) -> bool:
    return isinstance(value, DictConfig) and "_target_" in value


def _may_be_off(section: DictConfig) -> bool:
    """Whether null may stand for it: for an object, and for objects by name, such as callbacks."""
    return _is_object(section) or all(
        item is None or _is_object(item) for item in (value_at(section, name) for name in section)
    )


def _misfit(value: Any, default: Any) -> str:
    if default is None or default is UNKNOWN:
        return ""
    if isinstance(default, DictConfig):
        what = "a section with a _target_" if _is_object(default) else "a section"
        return "" if value is None and _may_be_off(default) else f"expected {what}, found {say_value(value)}"
    if isinstance(default, ListConfig):
        return "" if isinstance(value, ListConfig) else f"expected a list, found {say_value(value)}"
    kind = type(default)
    return "" if fits(value, kind) else f"expected {kind.__name__}, found {say_value(value)}{how_to_write(value, kind)}"

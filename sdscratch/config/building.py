"""From a checked configuration to objects: the single way to Hydra's instantiate."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sdscratch.config.targets import find_target
from sdscratch.config.words import first_line
from sdscratch.errors import ConfigError, SdscratchError


def build(node: DictConfig | None, **kwargs: Any) -> Any:
    """Make the object that a `_target_` node describes, with plain lists and dicts as arguments; null gives None.

    A node with `_partial_: true` gives a callable. kwargs are what no configuration can hold (networks, callbacks);
    with them the object is made now, partial or not, and they reach it untouched. Raises ConfigError where a target is
    not allowed or refuses its arguments; errors of sdscratch's own and of the operating system pass through.
    """
    if node is None:
        return None
    if not isinstance(node, DictConfig) or "_target_" not in node:
        raise ConfigError(f"expected a section with a _target_, found {node}")
    for target in _targets(OmegaConf.to_container(node, resolve=True)):
        find_target(target)
    try:
        if kwargs:  # instantiate would wrap the lists and dicts among them
            return instantiate(node, _convert_="all", _partial_=True)(**kwargs)
        return instantiate(node, _convert_="all")
    except Exception as error:
        cause = (error.__cause__ or error) if isinstance(error, InstantiationException) else error
        if isinstance(cause, (SdscratchError, OSError)):
            raise cause from None
        where = re.search(r"full_key: (\S+)", str(error))
        what = f"{where[1]}: {node._target_}" if where else node._target_
        reason = f"{type(cause).__name__}: {first_line(cause)}"
        raise ConfigError(f"{what} cannot be built: {reason} (HYDRA_FULL_ERROR=1 shows where)") from cause


def build_named(nodes: Mapping[str, DictConfig | None] | None) -> dict[str, Any]:
    """Build a section of objects such as callbacks or loggers, by name and in its order; null entries are left out."""
    return {str(name): build(node) for name, node in (nodes or {}).items() if node is not None}


def _targets(value: Any) -> Iterator[Any]:
    """Every `_target_` in a plain configuration."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield value["_target_"]
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _targets(item)

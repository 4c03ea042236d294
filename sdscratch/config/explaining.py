"""Why Hydra could not compose a configuration, in one screen and in the user's terms."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import yaml
from hydra.errors import MissingConfigException, OverrideParseException

from sdscratch.config.words import did_you_mean, first_line

PLUGINS = {"hydra/sweeper": ("optuna",), "hydra/launcher": ("submitit_slurm", "submitit_local")}
"""Options that come with packages of the extra `sweep`."""


class Group(NamedTuple):
    """A config group of a verb: the option that is chosen, if any, and those that could be."""

    chosen: str | None
    options: list[str]


def explain(
    error: Exception,
    overrides: Sequence[str],
    keys: Iterable[str] = (),
    groups: Mapping[str, Group] | None = None,
    problems_of_adding: Callable[[str], Sequence[str]] = lambda key: ("",),
) -> str:
    """Text for an exception of Hydra, OmegaConf or the YAML reader.

    overrides: as given. keys, groups: what the verb has without overrides, for "did you mean". problems_of_adding: what would
    be wrong with a key that is not there if its override added it; an empty text where that cannot be told.
    """
    text, groups = str(error), groups or {}
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem or error.context}"
    if isinstance(error, MissingConfigException):
        return _origin(text) + _missing_option(error, groups)
    if isinstance(error, OverrideParseException):
        word = str(error.override)
        return f"cannot read {word!r}: write key=value{_as_in(word, overrides, [*keys, *groups], groups)}"
    if found := re.search(r"Could not (?:override|delete from config|delete)\W+([\w./@$-]+)", text):
        known = [*keys, *groups]
        if found[1] in groups and not groups[found[1]].options:
            return f"{_origin(text)}there are no options for {found[1]!r} yet"
        if found[1] in known:
            return f"{_origin(text)}with the options chosen there is no {found[1]!r}: it belongs to others"
        hint = did_you_mean(found[1], known)
        for override in (word for word in overrides if word.partition("=")[0] == found[1]):
            problems = problems_of_adding(found[1])
            if not problems:
                hint = f", but the code takes one: add it by +{override}"
            elif problems[0] and not hint:
                hint = f": {problems[0]}"
        return f"{_origin(text)}there is no key {found[1]!r}{hint}"
    if found := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'", text):
        return f"{found[1]}: several values need -m, for a run each; a list is written [a,b], a string '\"a,b\"'"
    if "Config group override" in text:
        for name, _, value in (override.lstrip("+~").partition("=") for override in overrides):
            if name in groups and value not in groups[name].options:
                return f"{name}: a config group takes the name of an option: {', '.join(groups[name].options)}"
    return _plain(error)


def _origin(text: str) -> str:
    """`In 'experiment/mine': ` where Hydra names a file below a group."""
    found = re.match(r"In '([^']*/[^']*)': ", text)
    return found[0] if found else ""


def _as_in(word: str, overrides: Sequence[str], known: Sequence[str], groups: Mapping[str, Group]) -> str:
    """How an override is written that could not be read."""
    if "=" in word:
        return ", and key='\"a value\"' around any of ,()[]{}=:"
    if word in known:
        following = [*overrides, ""][list(overrides).index(word) + 1]
        return f", as in {word}={following if following and '=' not in following else '...'}"
    choosing = [f"{name}={word}" for name, group in groups.items() if word in group.options]
    return f", as in {choosing[0]}" if choosing else did_you_mean(word, known)


def _missing_option(error: MissingConfigException, groups: Mapping[str, Group]) -> str:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if option in PLUGINS.get(group, ()):
        return f"{group}={option} needs packages that are not installed: pip install 'sdscratch[sweep]'"
    options = list(error.options or (groups[group].options if group in groups else []))
    if not options:
        return f"there is no {error.missing_cfg_file!r} among the configurations"
    return f"{group} has no option {option!r}{did_you_mean(option, options) or ', only ' + ', '.join(options)}"


def _plain(error: BaseException) -> str:
    """What the library says: the first exception in the chain that says anything, without addresses of its manual."""
    cause: BaseException | None = error
    while cause is not None and not str(cause).strip():
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause or error).splitlines() if line.strip() and "https://" not in line]
    return "\n  ".join(lines[:8]) or first_line(error)

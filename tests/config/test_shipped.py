"""Every configuration that is shipped fits the code."""

from __future__ import annotations

import pytest

from sdscratch.cli import VERBS
from sdscratch.config import compose, config_dir, config_groups
from sdscratch.config.checking import object_problems


def shipped() -> list[tuple[str, str]]:
    """Every primary config, plain and with each option of each of its groups."""
    primaries = [
        verb.config for verb in VERBS.values() if verb.config and (config_dir() / f"{verb.config}.yaml").exists()
    ]
    choices = [(primary, "") for primary in primaries]
    for primary in primaries:
        for name, group in config_groups(primary).items():
            choices += [(primary, f"{name}={option}") for option in group.options if option != group.chosen]
    return choices


@pytest.mark.parametrize(("primary", "choice"), shipped())
def test_every_shipped_option_fits_the_code(primary, choice):
    problems = object_problems(compose(primary, [choice] if choice else []))
    assert [line for line in problems if not line.endswith(": required, but not set")] == []  # those are for the user


def test_every_shipped_primary_config_belongs_to_a_verb():
    files = [*config_dir().glob("*.yaml"), *config_dir().glob("data/*.yaml")]
    configs = {verb.config for verb in VERBS.values()}
    assert {str(file.relative_to(config_dir()).with_suffix("")) for file in files} <= configs

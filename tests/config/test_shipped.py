"""Every configuration that is shipped fits the code."""

import pytest

from sdscratch.config import compose, config_dir, config_groups
from sdscratch.config.checking import object_problems
from sdscratch.errors import ConfigError
from sdscratch.verbs import VERBS

PRIMARIES = sorted({verb.config for verb in VERBS.values() if verb.config})


def problems(primary: str, *overrides: str) -> list[str]:
    """What is wrong with a configuration, except for what is left to the user to set or to install."""
    try:
        found = object_problems(compose(primary, overrides))
    except ConfigError as error:
        found = [str(error)]
    left = (": required, but not set", "[optim8bit]'", "[augment]'", "[sweep]'")
    return [f"{primary} {' '.join(overrides)}: {line}" for line in found if not line.endswith(left)]


def test_doctor_takes_what_train_takes():
    assert problems("doctor") == [] and config_groups("doctor") == config_groups("train")


@pytest.mark.parametrize("primary", sorted({*PRIMARIES} - {"doctor"}))
def test_a_verbs_configuration_fits_the_code_with_every_option_of_its_groups(primary):
    found = problems(primary)
    for name, group in config_groups(primary).items():
        for option in set(group.options) - {group.chosen}:
            found += problems(primary, f"{name}={option}")
    assert found == []


def test_every_primary_config_belongs_to_a_verb():
    files = [*config_dir().glob("*.yaml"), *config_dir().glob("data/*.yaml")]
    assert {str(file.relative_to(config_dir()).with_suffix("")) for file in files} <= set(PRIMARIES)

"""One way to refuse a name that is not among the choices."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches

from sdscratch.errors import ConfigError


def check_choice(setting: str, found: str, choices: Collection[str]) -> None:
    """Raise ConfigError with the choices, and the one that was probably meant, unless `found` is among them."""
    if not isinstance(found, str) or found not in choices:
        guess = "".join(f" Did you mean {name!r}?" for name in get_close_matches(str(found), choices, n=1))
        raise ConfigError(f"{setting} {found!r} is unknown; expected one of {', '.join(sorted(choices))}.{guess}")

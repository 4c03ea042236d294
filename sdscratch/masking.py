"""How keys and passwords stay out of files."""

from __future__ import annotations

import os
import re

MASK = "***"
SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)s?(_|$)", re.IGNORECASE)
"""Names of what must not be written down."""


def mask(text: str) -> str:
    """Text without the values of environment variables that are secrets, such as the shell has put into an override."""
    for secret in secrets():
        if len(secret) >= 8:  # a shorter one is too likely to be part of a word
            text = text.replace(secret, MASK)
    return text


def secrets() -> list[str]:
    """The values of all environment variables that are secrets by their name."""
    return [value for name, value in os.environ.items() if value and SECRET.search(name)]

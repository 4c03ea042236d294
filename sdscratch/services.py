"""The services on the network that a run may use: where they are, whether there is a key, and how keys stay out of files.

Nothing here calls them.
"""

from __future__ import annotations

import os
import re
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit

MASK = "***"
SECRET = re.compile(r"(^|_)(api_?key|token|secret|password)s?(_|$)", re.IGNORECASE)
"""Names of what must not be written down."""


def wandb_url() -> str:
    """Where W&B is: its cloud, or one's own server by WANDB_BASE_URL."""
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def wandb_key() -> str | None:
    """The key from WANDB_API_KEY, else the one that `wandb login` has left in ~/.netrc."""
    if key := os.environ.get("WANDB_API_KEY"):
        return key
    try:
        found = netrc().authenticators(urlsplit(wandb_url()).hostname or "")
    except (OSError, NetrcParseError):
        return None
    return found[2] if found else None


def hub_url() -> str:
    """Where the Hugging Face hub is."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def mask(text: str) -> str:
    """Text without the values of environment variables that are secrets, such as the shell has put into an override."""
    for secret in secrets():
        if len(secret) >= 8:  # a shorter one is too likely to be part of a word
            text = text.replace(secret, MASK)
    return text


def secrets() -> list[str]:
    """The values of all environment variables that are secrets by their name."""
    return [value for name, value in os.environ.items() if value and SECRET.search(name)]

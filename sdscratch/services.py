"""The services on the network that a run may use: where they are, and whether there is a key. Nothing here calls them."""

from __future__ import annotations

import os
from netrc import NetrcParseError, netrc
from urllib.parse import urlsplit


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

"""Libraries that talk to people who call them themselves."""

from __future__ import annotations

import logging
import warnings

import diffusers
import lightning.pytorch  # noqa: F401  # which sets how much it says when it is loaded
import transformers


def quieten_libraries() -> None:
    """Their hints and bars are for people who call them themselves; errors still come through."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*no `validation_step`.*",
        ".*treespec, LeafSpec.*",
        ".*callbacks used to create.*",
        ".*`broadcast_buffers` is deprecated.*",  # what replaces it is new in torch 2.13
    ):
        warnings.filterwarnings("ignore", message)
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()

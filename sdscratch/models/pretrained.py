"""Networks of diffusers and transformers from disk: whole or not at all, and without those libraries' commentary."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import transformers

from sdscratch.errors import DataError


def load_pretrained(kind: Any, path: str | Path, what: str) -> Any:
    """`kind.from_pretrained(path)` in float32, from safetensors, offline; `path` is a folder or a hub id in the local cache.

    Raises DataError that calls the network `what` when it is absent or damaged. The libraries themselves only warn of a
    missing tensor, and go on with a random one.
    """
    remedy = "Restore it, or train it again"
    try:
        with without_commentary():
            network, found = kind.from_pretrained(
                path,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # they are listed, and refused below
                output_loading_info=True,
            )
    except Exception as error:  # damaged files raise nearly anything
        if not Path(path).exists():
            raise DataError(
                f"there is no {what} {path}: expected a folder, or a hub id already downloaded (once, with network: "
                f"`hf download {path}`)"
            ) from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} holds no {what} that can be read ({reason}). {remedy}.") from error
    for problem in ("missing", "mismatched"):
        names = sorted(key if isinstance(key, str) else key[0] for key in found[f"{problem}_keys"])
        if names:
            raise DataError(f"{path}: {len(names)} tensors of the {what} are {problem}, {names[0]} first. {remedy}.")
    return network.float()


@contextmanager
def without_commentary() -> Iterator[None]:
    """Let diffusers and transformers print nothing, no progress bars either, while they load or save."""
    logs = (diffusers.utils.logging, transformers.utils.logging)
    before = [log.get_verbosity() for log in logs]
    bars = transformers.utils.logging.is_progress_bar_enabled()
    for log in logs:
        log.set_verbosity(logging.CRITICAL)  # their errors are raised as well
    transformers.utils.logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity in zip(logs, before, strict=True):
            log.set_verbosity(verbosity)
        if bars:
            transformers.utils.logging.enable_progress_bar()

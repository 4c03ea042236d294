"""Configurations as text that may be kept beside a run and shown to anyone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from sdscratch.config.words import escape_interpolations
from sdscratch.errors import ConfigError
from sdscratch.files import check_file, write_atomically
from sdscratch.masking import MASK, SECRET, mask, secrets

TEXT_TOKEN = re.compile(r"^(bos|eos|pad|unk|cls|sep|mask)_token", re.IGNORECASE)  # of tokenizers


def to_yaml(cfg: DictConfig, resolve: bool = True) -> str:
    """The configuration as YAML that OmegaConf reads back as it stands, with secrets masked.

    Masked are strings under keys such as `api_key`, `hf_token`, `password`, and wherever they appear the values of
    environment variables with such names. resolve: write what interpolations lead to instead of the interpolations.
    """
    return OmegaConf.to_yaml(OmegaConf.create(_masked(cfg, resolve, escape=resolve)))


def plain(cfg: DictConfig, resolve: bool = True) -> dict[str, Any]:
    """The configuration as dicts, lists and values, with secrets masked."""
    return _masked(cfg, resolve, escape=False)


def save_config(cfg: DictConfig, path: str | Path, resolve: bool = True) -> None:
    """Write to_yaml(cfg, resolve) to a file."""
    write_atomically(Path(path), lambda file: file.write(to_yaml(cfg, resolve).encode()))


def load_config(path: str | Path) -> DictConfig:
    """Read back what save_config has written. Raises ConfigError for a file that is damaged, or holds more than plain YAML."""
    try:
        check_file(Path(path))
        found = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"{path} cannot be read as a configuration ({reason}). Restore it, or start a new run"
        ) from error
    if not isinstance(found, DictConfig):
        raise ConfigError(f"{path} holds no configuration: expected keys and values. Restore it, or start a new run")
    return found


def _masked(cfg: DictConfig, resolve: bool, escape: bool) -> Any:
    return _mask(OmegaConf.to_container(cfg, resolve=resolve), secrets(), escape)


def _mask(value: Any, secrets: list[str], escape: bool, key: object = "") -> Any:
    if isinstance(value, dict):
        return {name: _mask(item, secrets, escape, name) for name, item in value.items()}
    if isinstance(value, list):
        return [_mask(item, secrets, escape, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    if (SECRET.search(str(key)) and not TEXT_TOKEN.search(str(key))) or value in secrets:
        return MASK
    return escape_interpolations(mask(value)) if escape else mask(value)

"""Where verbs read and write. Nothing is not this folder: an unset variable of a script must not pack it, or fill it."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sdscratch.errors import ConfigError


def in_path(cfg: DictConfig) -> Path:
    """The file or folder `path`. Raises ConfigError where it is empty, or cannot be looked at."""
    path = Path(required(cfg, "path", "a file or a folder, `.` for this one"))
    try:
        path.exists()
    except OSError as error:  # too long a name, or a folder on its way that is not ours to read
        raise ConfigError(f"path={str(path)[:200]} cannot be read: {error.strerror or error}") from error
    return path


def out_folder(cfg: DictConfig) -> Path:
    """The folder `out`. Raises ConfigError where it is empty."""
    return Path(required(cfg, "out", "a folder, `.` for this one"))


def required(cfg: DictConfig, key: str, what: str) -> str:
    """The text that a key is set to. what: was expected, for the ConfigError where it is empty or null."""
    if (value := optional(cfg, key)) is None:
        raise ConfigError(f"{key} is empty: expected {what}")
    return value


def optional(cfg: DictConfig, key: str) -> str | None:
    """The same; None where it is empty or null. The command line takes paths as they stand, `null` too; ./null is one."""
    return None if cfg[key] in (None, "", "null") else str(cfg[key])

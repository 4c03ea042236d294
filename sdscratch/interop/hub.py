"""To and from the Hugging Face hub, only ever when asked to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from huggingface_hub import HfApi, hf_hub_download, snapshot_download

from sdscratch.errors import ConfigError, DataError

PIPELINE_FILES = ["*.json", "*/*.json", "*/*.txt", "*/*.safetensors"]
OTHER_VARIANTS = ["*.fp16.*", "*.non_ema.*", "safety_checker/*", "feature_extractor/*"]
Result = TypeVar("Result")


def fetch(source: str) -> Path:
    """`hf:OWNER/NAME/FILE`, or a whole pipeline as `hf:OWNER/NAME`, in the local cache; downloaded if it is not there.

    Raises ConfigError for an address that is none, DataError where it cannot be had.
    """
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/(.+))?", source)
    if not found:
        raise ConfigError(f"{source} is no address on the hub: expected hf:OWNER/NAME/FILE, or hf:OWNER/NAME")
    repository, file = found[1], found[2]
    if file is None:
        return Path(
            _asked(
                source,
                lambda: snapshot_download(repository, allow_patterns=PIPELINE_FILES, ignore_patterns=OTHER_VARIANTS),
            )
        )
    return Path(_asked(source, lambda: hf_hub_download(repository, file)))


def push(path: Path, repository: str) -> str:
    """Upload a folder, or a file, to OWNER/NAME, which is made (private) if it is not there. Returns its address."""
    check_repository(repository)
    api = HfApi()

    def upload() -> str:
        address = api.create_repo(repository, private=True, exist_ok=True)
        if path.is_dir():
            inside = path.name if path.suffix == ".configs" else None
            api.upload_folder(folder_path=path, path_in_repo=inside, repo_id=repository)
        else:
            api.upload_file(path_or_fileobj=path, path_in_repo=path.name, repo_id=repository)
        return str(address)

    return _asked(f"push={repository}", upload)


def check_repository(name: object) -> None:
    """Raise ConfigError unless it is OWNER/NAME."""
    if not isinstance(name, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigError(f"push={name} is no repository: expected OWNER/NAME")


def _asked(what: str, call: Callable[[], Result]) -> Result:
    try:
        return call()
    except Exception as error:  # of the hub's client, of the network, of the file system
        reason = str(error).strip().partition("\n")[0][:300] or type(error).__name__
        raise DataError(f"{what}: the hub did not give what was asked for ({reason})") from error

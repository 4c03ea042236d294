"""Which folders a configured data set is read from, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def folders_of(dataset: Mapping[str, Any]) -> list[Path]:
    """Those that samples are trained on from, `dataset` being a section of the configuration; replayed ones come last."""
    return [*_paths(dataset), *replayed_folders(dataset)]


def replayed_folders(dataset: Mapping[str, Any]) -> list[Path]:
    """Of earlier sources that get a share; the others can be missing."""
    replay = dataset.get("replay") or {}
    return _paths(replay) if replay.get("share") else []


def _paths(section: Mapping[str, Any]) -> list[Path]:
    """The `path` of a section, and those of its `sources` that have a share."""
    single = [Path(section["path"])] if section.get("path") is not None else []
    sources = (section.get("sources") or {}).values()
    return [*single, *(Path(source["path"]) for source in sources if source.get("share"))]

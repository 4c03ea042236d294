"""The real data pack, and a cache of its own for every test of this room."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def data_pack() -> Callable[[str], Path]:
    """Folders of the real data pack, read-only; skips where it is absent."""
    root = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[4] / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} in {root}: set SDSCRATCH_DATA_PACK")
        return root / name

    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

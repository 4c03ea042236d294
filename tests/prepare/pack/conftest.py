"""A cache of its own for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

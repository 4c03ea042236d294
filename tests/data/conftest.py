"""Tiny real shards for every test of this room."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_shards import image_samples, latent_samples

from sdscratch.data.shards import write_shards


@pytest.fixture
def image_shards(tmp_path: Path) -> Path:
    """Four shards of 7, 7, 7 and 2 images of 12x10 pixels."""
    write_shards(tmp_path / "images", image_samples(23), {"what": "noise"}, shard_size=7)
    return tmp_path / "images"


@pytest.fixture
def latent_shards(tmp_path: Path) -> Path:
    """Four shards of 7, 7, 7 and 2 latents (flips 2, C 4, h 2, w 2)."""
    write_shards(tmp_path / "latents", latent_samples(23), {"vae": "abc", "resolution": 16}, shard_size=7)
    return tmp_path / "latents"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"

"""How fast do training samples come?"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache

from sdscratch.doctor.finding import Finding, Level

STAGES = {"vae": "autoencoder", "text_encoder": "clip"}
"""Which stage trains what may also be downloaded."""


def rate(loader: Iterable[Any], batch_size: int, workers: int, seconds: float = 1.5) -> Iterator[Finding]:
    """Samples per second after the first batch, over some `seconds`."""
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    per_second = count * batch_size / (time.perf_counter() - start)
    found = f"{per_second:.0f} samples/s with num_workers={workers}; the first batch took {first:.1f} s"
    yield Finding("ok", "loader", found)


def weights(what: str, path: str, lacking: Level = "fail") -> Iterator[Finding]:
    """Whether pretrained weights are here: a folder, or a hub id in the local cache. lacking: the level where they are not."""
    if Path(path).is_dir():
        yield Finding("ok", what, f"{path} is here")
    elif Path(path).is_absolute() or path.startswith(".") or not isinstance(_cached(path), str):
        yield Finding(lacking, what, f"{path} is not here", f"hf download {path}, or train it: stage={STAGES[what]}")
    else:
        yield Finding("ok", what, f"{path} is in the local cache")


def _cached(path: str) -> Any:
    try:
        return try_to_load_from_cache(path, "config.json")
    except ValueError:  # no hub id: runs/vae/model has too many parts
        return None

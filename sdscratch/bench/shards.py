"""Shards of random latents with captions and their states, for benchmarks that read."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sdscratch.data import latents, write_shards


def write_random_latents(
    folder: Path, count: int, side: int, channels: int = 4, states_shape: tuple[int, int] | None = None
) -> None:
    """`count` samples of side x side latents, with captions' states where a shape (tokens, channels) is given."""
    random = np.random.default_rng(0)
    moments = random.standard_normal((1, 2, channels, side, side))
    about = {"source": "random", "licence": "CC0-1.0", "width": 8 * side, "height": 8 * side}

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for n in range(count):
            record = about | {"captions": [f"a photograph of thing number {n} on a table"]}
            members = {"latent.npy": latents.pack(np.roll(moments, n, axis=-1)), "json": json.dumps(record).encode()}
            if states_shape is not None:
                np.save(file := io.BytesIO(), random.standard_normal((1, *states_shape)).astype(np.float16))
                members["text.npy"] = file.getvalue()
            yield f"{n:06d}", members

    write_shards(folder, samples(), {}, shard_size=500)

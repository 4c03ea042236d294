"""A download is killed again and again: what lies there in the end is what an undisturbed one leaves, byte for byte."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from random import Random

import numpy as np
import pytest
from harness import LONG, ForkServer, wait_until
from PIL import Image
from web_server import WebServer

from sdscratch.data.manifest import MANIFEST, Manifest

KILLS = 3 if not LONG else 30
ROWS = 90
DEAD_ENDS = ("status/404", "status/503", "robots/noai", "html", "cut", "loop", "half", "reset", "bomb", "flaky/1/a")


@pytest.fixture(scope="module")
def web() -> Iterator[WebServer]:
    """Pictures of 40 to 130 pixels, each a little late."""
    random = np.random.default_rng(0)

    def picture(number: int) -> bytes:
        file = BytesIO()
        pixels = random.integers(0, 256, (40 + number, 60 + number // 2, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    with WebServer({f"{n}.png": ("image/png", picture(n)) for n in range(ROWS)}, delay=0.05) as server:
        yield server


@pytest.fixture(scope="module")
def rows(web: WebServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every ninth row leads nowhere, in one of all ways."""
    path = tmp_path_factory.mktemp("rows") / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        for n in range(ROWS):
            where = f"img/{n}.png" if n % 9 else DEAD_ENDS[n // 9]
            writer.writerow([f"{web.url}/{where}", f"noise, number {n}"])
    return path


def words(rows: Path, out: Path) -> list[str]:
    settings = [
        "pictures.size=64",
        "pictures.min_size=32",
        "shard_size=6",
        "manners.backoff=0.01",
        "manners.concurrency=6",
        "manners.max_bytes=1000000",
    ]
    return ["data", "download", f"path={rows}", f"out={out}", "manners.allow_private=true", *settings]


def shards(folder: Path) -> int:
    """How many are settled; all of them where they are finished."""
    return len(list(folder.glob("*.tar.json"))) if not (folder / MANIFEST).exists() else ROWS


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_download_killed_at_random_times_leaves_the_bytes_of_an_undisturbed_one(server: ForkServer, rows, tmp_path):
    whole = server.attempt(words(rows, tmp_path / "whole"))
    assert whole.rc == 0, whole.output
    expected, manifest = contents(tmp_path / "whole"), Manifest.read(tmp_path / "whole")
    assert manifest is not None and len(manifest.shards) == ROWS // 6
    assert manifest.total + sum(manifest.dropped.values()) == ROWS and len(manifest.dropped) >= 7
    random, kills, rounds = Random(0), 0, 0
    while kills < KILLS:
        out, rounds = tmp_path / f"round{rounds}", rounds + 1
        while True:
            running, more = server.start(words(rows, out)), random.randrange(6)
            written = shards(out) + more
            wait_until(lambda: shards(out) >= written or running.ends_within(0.001))  # noqa: B023
            if running.ends_within(random.uniform(0, 0.2)):
                break
            running.kill()
            assert running.wait().killed or (out / MANIFEST).exists()
            kills += 1
        assert running.wait().rc == 0
        assert contents(out) == expected
    print(f"{kills} kills in {rounds} downloads, 0 bytes differ")

"""kill -9 at any moment of an encoding costs the shards under way: the same command goes on, and ends in the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
import torch
from harness import LONG, wait_until

from sdscratch.data import shapes
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import DROPPED, write_shards
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import new_vae

KILLS = 100 if LONG else 30
SHARDS, SHARD_SIZE = 12, 20


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[str]]:
    """`words(out, ...)`: the command line that encodes twelve shards, in which every thirteenth picture is none."""
    folder = tmp_path_factory.mktemp("encode")
    torch.manual_seed(0)
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    save_model_folder(folder / "model", vae=new_vae(**sizes, sample_size=8), about={})
    drawn = shapes.samples("train", SHARDS * SHARD_SIZE, 8, seed=0)
    pictures = ((key, members | ({"png": b""} if n % 13 == 0 else {})) for n, (key, members) in enumerate(drawn))
    write_shards(folder / "images", pictures, {}, SHARD_SIZE)

    def words(out: Path, *more: str) -> list[str]:
        places = (f"path={folder / 'images'}", f"out={out}", f"model={folder / 'model'}")
        return ["data", "encode", *places, "resolution=8", "batch_size=2", "on_bad=quarantine", *more]

    return words


def test_killed_at_random_times_it_ends_in_the_same_bytes(server, words, tmp_path):
    undisturbed = server.attempt(words(tmp_path / "undisturbed"))
    assert undisturbed.rc == 0, undisturbed.output
    expected = contents(tmp_path / "undisturbed")
    manifest = Manifest.read(tmp_path / "undisturbed")
    assert manifest.total + manifest.dropped["not decodable"] == SHARDS * SHARD_SIZE

    times, kills, folders, seconds = Random(0), 0, 0, undisturbed.seconds
    while kills < KILLS:
        before = kills
        out, folders, written, done = tmp_path / f"killed{folders}", folders + 1, 0, False
        while not done:  # after a kill at the very end as well: the same command then tidies up
            kill_after = times.uniform(0.1, 0.9) * seconds if kills < KILLS else None
            attempt = server.attempt(words(out), kill_after=kill_after)
            assert attempt.rc in (0, -signal.SIGKILL), attempt.output
            kills, done = kills + attempt.killed, attempt.rc == 0
            whole = len(list(out.glob("*.tar"))) if out.exists() else 0
            assert whole >= written, "a shard that was whole is gone"
            written = whole
        seconds /= 1 if kills > before else 2  # the machine was busier when the undisturbed one ran
        assert contents(out) == expected
    print(f"{kills} kills of {folders} encodings: {folders} ended in the bytes of the undisturbed one")
    assert set(expected) == {MANIFEST, DROPPED} | {f"{n:05d}.tar" for n in range(SHARDS)}


def test_ctrl_c_ends_it_in_one_line_and_the_same_command_goes_on(server, words, tmp_path):
    running = server.start(words(tmp_path, "batch_size=1"))
    wait_until(lambda: (tmp_path / "00000.tar").exists())
    running.kill(signal.SIGINT)
    attempt = running.wait()
    assert (attempt.rc, attempt.output) == (130, "sdscratch: stopped\n")
    before = (tmp_path / "00000.tar").stat().st_mtime_ns
    assert server.attempt(words(tmp_path)).rc == 0
    assert (tmp_path / "00000.tar").stat().st_mtime_ns == before


@pytest.mark.skipif(not LONG, reason="each worker imports torch, which takes seconds")
def test_without_their_parent_workers_vanish_and_the_same_command_goes_on(server, words, tmp_path):
    running = server.start(words(tmp_path / "out", "batch_size=1", "workers=2"))
    wait_until(lambda: (tmp_path / "out" / "00000.tar").exists())
    running.kill(whom="parent")
    assert running.wait().rc == -signal.SIGKILL
    wait_until(lambda: running.group() == [], 30)
    for out, workers in (("out", 2), ("undisturbed", 0)):
        assert server.attempt(words(tmp_path / out, "batch_size=1", f"workers={workers}")).rc == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")

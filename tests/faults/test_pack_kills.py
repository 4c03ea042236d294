"""kill -9 at any moment of packing or adopting: the same command ends in the bytes of a job that was never killed."""

from __future__ import annotations

import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from PIL import Image

from sdscratch.data.manifest import MANIFEST
from sdscratch.prepare.pack import JourneyDB
from sdscratch.prepare.pack.adopt import Tars
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pictures import Form

KILLS = 30 if os.environ.get("SDS_FAULTS") == "long" else 8
ARCHIVES, PICTURES = 3, 40


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Archives that take a while: pictures of 400x300 pixels, which are reduced."""
    folder = tmp_path_factory.mktemp("journeydb")
    (folder / "imgs").mkdir()
    lines = []
    for number in range(ARCHIVES):
        with tarfile.open(folder / f"imgs/{number:03d}.tgz", "w:gz") as archive:
            for n in range(PICTURES):
                name, file = f"./{number:03d}/{n:06d}.jpg", io.BytesIO()
                Image.radial_gradient("L").resize((400, 300)).point(lambda p, n=n: p * n // 40).save(file, "JPEG")
                member = tarfile.TarInfo(name)
                member.size = len(file.getvalue())
                archive.addfile(member, io.BytesIO(file.getvalue()))
                lines.append(json.dumps({"img_path": name, "prompt": f"number {n}"}))
    (folder / "anno_repath.jsonl").write_text("\n".join(lines))
    return folder


def pack(raw: Path, out: Path) -> None:
    Packer(Form(size=64), shard_size=7).pack(JourneyDB(raw), out)


def killed(job: Callable[[], object], after: float) -> bool:
    """Do it in a child that is killed after so many seconds, if it lives as long."""
    if not (child := os.fork()):
        code = 1
        try:
            job()
            code = 0
        finally:
            os._exit(code)
    deadline, status = time.monotonic() + after, (0, 0)
    while time.monotonic() < deadline and not status[0]:
        time.sleep(0.001)
        status = os.waitpid(child, os.WNOHANG)
    if not status[0]:
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status[1]) in (0, -signal.SIGKILL)
    return os.WIFSIGNALED(status[1])


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".npy"}


def test_packing_killed_at_random_times_ends_in_the_same_bytes(raw, tmp_path):
    started = time.monotonic()
    pack(raw, tmp_path / "whole")
    whole, seconds = contents(tmp_path / "whole"), time.monotonic() - started
    times, kills, number = Random(0), 0, 0
    while kills < KILLS:
        out = tmp_path / f"out{number}"
        if killed(lambda out=out: pack(raw, out), times.uniform(0, 0.5) * seconds):
            kills += 1
            continue
        assert contents(out) == whole
        number += 1
    pack(raw, out)
    assert contents(out) == whole


def test_adopting_killed_at_random_times_leaves_the_tars_alone_and_ends_the_same(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tars"
    pack(raw, folder)
    (folder / MANIFEST).unlink()
    tars = contents(folder)
    started = time.monotonic()
    Tars(folder).adopt()
    manifest, seconds = (folder / MANIFEST).read_bytes(), time.monotonic() - started
    times, kills = Random(1), 0
    while kills < KILLS:
        if killed(Tars(folder).adopt, times.uniform(0, 0.5) * seconds):
            kills += 1
            continue
        assert contents(folder) == tars | {MANIFEST: manifest}
        (folder / MANIFEST).unlink()
    Tars(folder).adopt()
    assert contents(folder) == tars | {MANIFEST: manifest}

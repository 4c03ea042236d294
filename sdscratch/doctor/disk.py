"""Is there room for a run's checkpoints, and how long does it take to write one?"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from sdscratch.doctor.finding import Finding, Level

PROBE = 64 * 1024**2  # bytes written to measure the speed, or as many as a second takes
TOO_LONG = 120.0  # seconds to write one checkpoint: training waits for it


def checkpoint_size(network: nn.Module) -> int:
    """Bytes of a checkpoint of training this network, which may be on the meta device: float32 weights, their average,
    and AdamW's two moments."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return 2 * float32_size(network) + 2 * 4 * parameters


def float32_size(network: nn.Module) -> int:
    """Bytes of all weights and buffers of a network in float32."""
    return 4 * sum(tensor.numel() for tensor in (*network.parameters(), *network.buffers()))


def disk(folder: Path, checkpoint: int, kept: int, snapshots: int = 0) -> Iterator[Finding]:
    """Room for `kept` checkpoints of `checkpoint` bytes, and `snapshots` bytes of averages, where `folder` is or would be made,
    and the speed of writing."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        yield Finding("fail", "disk", f"{place} is not writable", "choose another folder: paths.runs=...")
        return
    needed, free = checkpoint * kept + snapshots, shutil.disk_usage(place).free
    found = (
        f"{kept} checkpoints of {readable(checkpoint)}{f' and snapshots of {readable(snapshots)}' if snapshots else ''} "
        f"need {readable(needed)}; {readable(free)} are free in {place}"
    )
    remedy = "free some space, set another paths.runs, or keep fewer: callbacks.checkpoints.keep_last, keep_every"
    level: Level = "ok" if free > 1.2 * needed else "warn" if free > needed else "fail"
    yield Finding(level, "space", found, "" if level == "ok" else remedy)
    try:
        speed = _speed(place)
    except OSError as error:
        yield Finding("fail", "disk", f"cannot write into {place}: {error.strerror}", "set another paths.runs")
        return
    seconds = checkpoint / speed
    yield Finding(
        "ok" if seconds < TOO_LONG else "warn",
        "disk",
        f"{speed / 1e6:.0f} MB/s, written and synced: {seconds:.1f} s for a checkpoint",
        ""
        if seconds < TOO_LONG
        else "a faster disk: paths.runs=..., or fewer checkpoints: callbacks.checkpoints.every",
    )


def _speed(folder: Path) -> float:
    """Bytes per second, down to the disk."""
    probe, block, written = folder / f".sdscratch-probe-{os.getpid()}", os.urandom(4 * 1024**2), 0
    start = time.perf_counter()
    try:
        with probe.open("wb") as file:
            while written < PROBE and time.perf_counter() - start < 1:
                file.write(block)
                written += len(block)
            file.flush()
            os.fsync(file.fileno())
    finally:
        probe.unlink(missing_ok=True)
    return written / (time.perf_counter() - start)


def readable(size: int) -> str:
    """Bytes, in words."""
    return f"{size / 1e9:.1f} GB" if size > 1e9 else f"{size / 1e6:.1f} MB"

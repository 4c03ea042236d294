"""How long it takes until something happens: help, a configuration, the first optimizer step of the tiny experiment."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.errors import SdscratchError

TRIES = 3
FIRST_STEP = ("max_steps=1", "callbacks={validation: null, previews: null, plots: null, checkpoints: null}")


def bench_startup(setting: Setting) -> Findings:
    """By the clock, the least of three tries each, as a process of its own."""
    words = ["experiment=tiny", f"trainer={'gpu' if setting.on_cuda else 'cpu'}"]
    with TemporaryDirectory() as name:
        data = f"paths.data={Path(name) / 'data'}"

        def first_step(number: int) -> list[str]:
            return ["train", *words, *FIRST_STEP, data, f"paths.runs={Path(name) / str(number)}"]

        _seconds(first_step(TRIES))  # draws the data, which is no part of it
        whole = min(_seconds(first_step(number)) for number in range(TRIES))
        return Findings(
            [],
            [
                Fact("sdscratch --help", min(_seconds(["--help"]) for _ in range(TRIES)), "s", 2),
                Fact("a configuration", min(_seconds(["train", *words, "--cfg", "job"]) for _ in range(TRIES)), "s", 4),
                Fact("a run of one step, tiny, to its end", whole, "s", 60 if setting.on_cuda else 10),
            ],
        )


def _seconds(words: list[str]) -> float:
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, "-m", "sdscratch", *words], capture_output=True, text=True)
    if ended.returncode:
        raise SdscratchError(f"sdscratch {words[0]} failed: {ended.stderr.strip() or ended.stdout.strip()}")
    return time.perf_counter() - start

"""The losses of the tiny experiment, written down: `python -m tests.golden.write`, after a change that is meant to move them.

The same machine gives the same bits again and again; another kind of CPU or another torch gives other last digits, so
the file also says where it was made.
"""

from __future__ import annotations

import json
import platform
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FILE = Path(__file__).with_name("tiny_losses.json")


def environment() -> dict[str, str]:
    """What decides the last bits of a sum. Kernels choose the size of their blocks by the processor's model, too."""
    import torch

    info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return {
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": models[0] if models else platform.processor(),
    }


def content(metrics: list[dict[str, float]]) -> dict[str, Any]:
    """What the file should say of a run with these rows of metrics.csv."""
    return {"made_with": environment(), "train/loss": [row["train/loss"].hex() for row in metrics]}


def main() -> None:
    """Train the tiny experiment at one thread, and write its losses."""
    from sdscratch.commands.train import train
    from sdscratch.config import compose

    with TemporaryDirectory() as folder:
        run = train(compose("train", ["experiment=tiny", f"paths.runs={folder}", f"paths.data={folder}", "threads=1"]))
        FILE.write_text(json.dumps(content(run.read_metrics()), indent=1) + "\n")
    print(f"written: {FILE}")


if __name__ == "__main__":
    main()

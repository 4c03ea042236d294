"""One rank of a training job: `python -m sdscratch.commands.rank JOB`, started by commands/launch.py through torchrun."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path


def main(job: Path) -> int:
    """Train as job/config.yaml says; leave how it ended in job/rank_N.json."""
    rank = int(os.environ["RANK"])
    pid_file = job / f"rank_{rank}.pid"
    pid_file.with_suffix(".tmp").write_text(str(os.getpid()))
    pid_file.with_suffix(".tmp").rename(pid_file)
    if (job / "stop").exists():
        return 128 + signal.SIGTERM
    about = json.loads((job / "job.json").read_text())
    threading.Thread(target=_end_with_parent, args=[about["launcher"]], daemon=True).start()
    threads = (os.cpu_count() or 1) // int(os.environ["LOCAL_WORLD_SIZE"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads)))  # read when torch loads; `threads=` overrules it

    from omegaconf import OmegaConf

    from sdscratch.commands.launch import Outcome
    from sdscratch.commands.train import train
    from sdscratch.errors import SdscratchError, of_the_machine

    sys.argv[1:] = about["words"]
    cfg = OmegaConf.load(job / "config.yaml")
    OmegaConf.set_struct(cfg, True)
    outcome = Outcome(0, "", "", time.time())
    try:
        train(cfg)  # type: ignore[arg-type]
    except SdscratchError as error:
        outcome = Outcome(error.exit_code, str(error), "", time.time())
    except Exception as error:
        if (refused := of_the_machine(error)) is not None:
            outcome = Outcome(refused.exit_code, str(refused), "", time.time())
        else:
            message = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
            outcome = Outcome(1, message, traceback.format_exc(), time.time())
    outcome.save(job, rank)
    return outcome.exit_code


def _end_with_parent(parent: int) -> None:
    """Without it nobody would know of this rank, pass signals on to it, or say how it ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking all modules apart first would take seconds, for which the others, or SLURM, may not wait

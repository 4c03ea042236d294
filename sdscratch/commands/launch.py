"""Training on several devices: one process each, started through torchrun's launcher by the one that was asked to train.

That one has composed and checked the configuration, which the ranks read from a file, so that Hydra and its sweeps run once.
It trains nothing, passes signals on, and ends as the ranks did, with their exit code and their one line.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sdscratch.console import say_at_once
from sdscratch.errors import ConfigError, LostRankError, SdscratchError, StoppedError, check_whole
from sdscratch.files import write_json
from sdscratch.run_folder import RunFolder
from sdscratch.training.preemption import ANNOUNCEMENT, PASSED_ON, stopped

JOB = "sdscratch-"
"""How the names of the launchers' temporary folders begin."""


def ranks_to_start(trainer: DictConfig) -> int:
    """How many ranks this process must start; 0 where it trains itself, alone or as a rank that something else started.

    trainer: the section of the configuration. Raises ConfigError where it does not fit what has been started, and for
    several nodes, on which no single process can start anything.
    """
    size = world_size(trainer)
    nodes = trainer.get("num_nodes", 1)
    if is_rank():
        if _started() != size:
            raise ConfigError(
                f"{_started()} processes were started, but trainer.devices={trainer.devices} x trainer.num_nodes={nodes}: "
                "set them to what torchrun or srun starts; see docs/scaling.md"
            )
        return 0
    if nodes > 1:
        raise ConfigError(
            f"trainer.num_nodes={nodes}: start it on every node, by torchrun or srun; see docs/scaling.md"
        )
    return size if size > 1 else 0


def is_rank() -> bool:
    """Whether torchrun (ours or the user's) or srun has started this process as one of several."""
    return _started() > 0


def _started() -> int:
    """How many processes they have started; srun with a single task is no such thing. Raises ConfigError where they cannot
    have said so, as after a shell that has kept some of their variables."""
    if "RANK" in os.environ and "WORLD_SIZE" in os.environ:
        count = _number("WORLD_SIZE", 1)
        if count > 1:
            if lacking := [name for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
                raise ConfigError(
                    f"RANK and WORLD_SIZE={count} are set, as by torchrun, but not {', '.join(lacking)}: unset them, or "
                    "let torchrun start it"
                )
            _number("RANK", 0, count - 1)
            _number("LOCAL_RANK", 0, count - 1)
            _number("MASTER_PORT", 0, 65535)
        return count
    tasks = _number("SLURM_STEP_NUM_TASKS", 1) if "SLURM_STEP_NUM_TASKS" in os.environ else 1
    return tasks if tasks > 1 else 0


def _number(variable: str, least: int, most: int | None = None) -> int:
    """The value of a variable of the environment. Raises ConfigError where it is none from `least` to `most`."""
    text = os.environ[variable]
    value = int(text) if text.isdecimal() else text
    check_whole(f"in the environment {variable}", value, least, most)
    return int(value)


def world_size(trainer: DictConfig) -> int:
    """Devices of all nodes together, as configured. Raises ConfigError where that is none."""
    devices, nodes = _devices(trainer), trainer.get("num_nodes", 1)
    check_whole("trainer.num_nodes", nodes)
    if devices < 1:
        raise ConfigError(f"trainer.devices={trainer.devices}: expected at least one")
    return devices * nodes


def _devices(trainer: DictConfig) -> int:
    """Of one node. Lightning takes a number, a list of indices, and "auto" or -1 for all that there are."""
    devices = trainer.devices
    if isinstance(devices, str) and devices != "auto":
        try:
            devices = [int(i) for i in devices.split(",") if i.strip()] if "," in devices else int(devices)
        except ValueError as error:
            raise ConfigError(
                f"trainer.devices={devices} is unknown; expected a number, a list of indices, or auto"
            ) from error
    if devices in ("auto", -1):
        import torch

        return max(1, torch.cuda.device_count()) if trainer.accelerator in ("auto", "gpu", "cuda") else 1
    return devices if isinstance(devices, int) else len(devices)


@dataclass(frozen=True)
class Outcome:
    """How a rank ended: exit code and line as on the command line, the traceback of a bug, and when (seconds)."""

    exit_code: int
    message: str
    traceback: str
    time: float

    def save(self, job: Path, rank: int) -> None:
        """For the process that started the ranks."""
        write_json(job / f"rank_{rank}.json", asdict(self))


def launch(cfg: DictConfig, count: int, folder: RunFolder) -> None:
    """Train on `count` devices of this machine. Raises the error with which the ranks ended, if they did with one."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # we say it in one line
    _remove_leftovers(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=JOB) as name, _in_use(name):
        job = Path(name)
        OmegaConf.save(cfg, job / "config.yaml")  # as it was composed, with interpolations: nobody else may read it
        write_json(job / "job.json", {"words": sys.argv[1:], "launcher": os.getpid()})
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            run_id=job.name,
            max_restarts=0,
            signals_to_handle="",  # we do, see _passing_on
            logs_specs=DefaultLogsSpecs(log_dir=name),
        )
        with _passing_on(job) as asked:
            exit_codes: dict[int, int] = {}
            try:
                elastic_launch(config, sys.executable)("-m", "sdscratch.commands.rank", name)
            except ChildFailedError as failed:
                exit_codes = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        outcomes = {int(file.stem[5:]): Outcome(**json.loads(file.read_text())) for file in job.glob("rank_*.json")}
    if exit_codes:
        error = _why(folder, exit_codes, outcomes, asked[0] if asked else 0)
        _note_end(folder, error)
        raise error


def _why(
    folder: RunFolder, exit_codes: Mapping[int, int], outcomes: Mapping[int, Outcome], asked: int
) -> SdscratchError:
    """The error that the ranks' ends amount to: what one of them said, unless it only misses another that was killed.

    exit_codes: below 0 for signals. asked: the signal that was passed on to them, or 0.
    """
    said = sorted((o for o in outcomes.values() if o.exit_code and not o.traceback), key=lambda o: o.time)
    bugs = sorted((o.time, rank) for rank, o in outcomes.items() if o.traceback)
    killed = {rank: -code for rank, code in exit_codes.items() if code < 0 and rank not in outcomes}
    lost = {rank: number for rank, number in killed.items() if number not in (signal.SIGTERM, PASSED_ON)}
    if said and said[0].exit_code <= 128:
        error = SdscratchError(said[0].message)
        error.exit_code = said[0].exit_code
        return error
    if said or (asked and not bugs):
        number = asked or said[0].exit_code - 128
        state = folder.state()
        return stopped(folder.path, number, state.get("step") if state.get("status") == "stopped" else None)
    if lost:
        rank, number = next(iter(lost.items()))
        how = f"was killed by {signal.Signals(number).name}"
    elif bugs:
        _, rank = bugs[0]
        print(outcomes[rank].traceback, file=sys.stderr)
        how = f"failed: {outcomes[rank].message}"
    elif killed:
        return stopped(folder.path, signal.SIGTERM)
    else:
        rank, code = next(iter(exit_codes.items()))
        how = f"ended with exit code {code}"
    return LostRankError(f"rank {rank} {how}: `sdscratch resume {folder.path}` goes on from the newest checkpoint")


def _note_end(folder: RunFolder, error: SdscratchError) -> None:
    """In state.json, where the first rank could not do so any more. Not in the folder of someone else's run."""
    if not folder.path.is_dir():  # the ranks had not come that far
        return
    with suppress(SdscratchError, OSError):
        folder.lock()
        if folder.state().get("status") == "running":
            folder.set_state(status="stopped" if isinstance(error, StoppedError) else "failed")
    folder.unlock()


def _remove_leftovers(temporary: Path) -> None:
    """The folders of launchers that were killed. One that is in use is locked before anything is written into it."""
    for config in temporary.glob(f"{JOB}*/config.yaml"):
        with suppress(OSError):  # someone else's
            descriptor = os.open(config.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                if os.fstat(descriptor).st_uid == os.getuid():
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(config.parent)
            finally:
                os.close(descriptor)


@contextmanager
def _in_use(folder: str) -> Iterator[None]:
    """A locked folder is what systemd's cleaner of temporary files passes over, however old; runs last for weeks."""
    descriptor = os.open(folder, os.O_RDONLY)  # no child inherits it
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _passing_on(job: Path) -> Iterator[list[int]]:
    """The signals received in here, of which the first is passed on to the ranks; a second one ends them all at once.

    Ranks live in sessions of their own, where no Ctrl-C of the terminal reaches them.
    """
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        again = bool(received)
        received.append(number)
        with suppress(OSError):
            (job / "stop").touch()  # for ranks that are only just starting
        for file in job.glob("rank_*.pid"):
            with suppress(ProcessLookupError, ValueError):
                if again:
                    os.killpg(int(file.read_text()), signal.SIGKILL)
                else:
                    os.kill(int(file.read_text()), PASSED_ON)
        if again:
            os._exit(128 + number)
        say_at_once(ANNOUNCEMENT)

    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for handled in (signal.SIGTERM, signal.SIGINT, PASSED_ON):
            before[handled] = signal.signal(handled, receive)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

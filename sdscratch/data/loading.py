"""Which positions each rank reads, and the processes that read them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import contextmanager
from itertools import count
from queue import SimpleQueue
from threading import Thread, current_thread, main_thread
from types import TracebackType
from typing import Any

from torch.utils.data import DataLoader

from sdscratch.data.order import data_step
from sdscratch.errors import ConfigError, LostWorkerError, SdscratchError, check_whole

LARGEST_MICRO_BATCH = 2**16
"""More samples than any device has taken at once: a slip of the keyboard, which would fill the memory first."""

LONGEST_TEMPORARY = 72
"""107 bytes are left of a socket's path, and multiprocessing adds up to 35."""


def micro_batch_size(global_batch_size: int, world_size: int, accumulate: int) -> int:
    """Samples per rank and forward pass. Raises ConfigError when they are not whole."""
    check_whole("trainer.accumulate_grad_batches", accumulate)
    size, rest = divmod(global_batch_size, world_size * accumulate)
    if rest or size < 1:
        raise ConfigError(
            f"global_batch_size={global_batch_size} is not divisible by {world_size} devices x "
            f"trainer.accumulate_grad_batches={accumulate}. Set it to a multiple of {world_size * accumulate}."
        )
    return size


def check_temporary_folder() -> None:
    """Raise ConfigError where workers could not hand over their batches, and training would wait for ever: that goes by
    sockets in the folder for temporary files, and the path of a socket is short."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TEMPORARY:
        raise ConfigError(
            f"TMPDIR={folder} is too long for the sockets of the processes that read the data: expected at most "
            f"{LONGEST_TEMPORARY} characters. Set a shorter one, or dataset.num_workers=0"
        )


class PositionSampler:
    """The positions of each micro-batch of one rank, without end, from `start_step` on.

    All ranks and micro-batches of a step together hold exactly step * global_batch_size + (0 .. global_batch_size - 1),
    where data steps in `skipped` are passed over (see `data_step`).
    It keeps no state: iterating again starts at `start_step` again.
    """

    def __init__(
        self,
        start_step: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        skipped: Sequence[Sequence[int]] = (),
    ):
        if global_batch_size % (micro_batch_size * world_size):
            raise ConfigError(
                f"global_batch_size={global_batch_size} is not a multiple of {micro_batch_size} samples x "
                f"{world_size} ranks. Set it to one."
            )
        if micro_batch_size > LARGEST_MICRO_BATCH:
            raise ConfigError(
                f"global_batch_size={global_batch_size} makes micro-batches of {micro_batch_size} samples; expected at most "
                f"{LARGEST_MICRO_BATCH}. Lower it, or raise trainer.accumulate_grad_batches."
            )
        self.start_step, self.skipped, self.global_batch_size = start_step, skipped, global_batch_size
        self.micro_batch_size, self.stride = micro_batch_size, micro_batch_size * world_size
        self.offset = rank * micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.start_step):
            first = data_step(step, self.skipped) * self.global_batch_size
            for micro_batch in range(first, first + self.global_batch_size, self.stride):
                mine = micro_batch + self.offset
                yield list(range(mine, mine + self.micro_batch_size))


class Loader(DataLoader):
    """A DataLoader that gives the errors meant for users as they were raised, without a worker's traceback.

    What a worker has ready, a thread takes over while the step is at work; where memory is pinned, torch has one for it.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            batches = super().__iter__()
            yield from one_ahead(batches) if self.num_workers and not self.pin_memory else batches
        except SdscratchError as error:
            raise type(error)(str(error).strip().rpartition(f"{type(error).__name__}: ")[2]) from None


LEAVING = 1.0
"""Seconds that whoever leaves waits for the batch that is on its way: it comes in milliseconds, or perhaps never."""


def one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """The same, each taken in a thread while the one before is in use: from a process, that is milliseconds for every batch.

    An error comes when its batch is asked for.
    """
    wanted = SimpleQueue[Future[Any] | None]()

    def take() -> None:
        while (batch := wanted.get()) is not None:
            try:
                batch.set_result(next(batches, None))
            except BaseException as error:
                batch.set_exception(error)

    def want() -> Future[Any]:
        wanted.put(batch := Future[Any]())
        return batch

    Thread(target=take, name="taking batches", daemon=True).start()  # an executor's would keep a program that ends
    coming = want()
    try:
        while (batch := coming.result()) is not None:
            coming = want()
            yield batch
    finally:
        wanted.put(None)
        wait([coming], LEAVING)


LOST_WORKER = re.compile(
    r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (is killed by signal: \w+|exited unexpectedly)"
)


@contextmanager
def lost_workers_named(workers: int, remedy: str) -> Iterator[None]:
    """Say in one line that a loader's process is gone, which torch may notice anywhere between two batches.

    workers: how many a loader has. remedy: the command that goes on. Raises LostWorkerError.
    """
    try:
        yield
    except RuntimeError as error:
        if not (found := LOST_WORKER.search(str(error))):
            raise
        raise LostWorkerError(
            f"process {found[1]}, one of {workers} that read the data, {found[2]}; the system does that when memory runs "
            f"out. Free some, or set a lower dataset.num_workers; {remedy} goes on from the newest checkpoint"
        ) from error


PR_SET_PDEATHSIG = 1


def stop_with_parent(worker: int) -> None:
    """In a loader's worker: be there for the last steps when the whole process group is told to stop, and no longer.

    A worker holds the connections between ranks open. While it outlives a killed rank, the others wait for that one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # elsewhere torch finds out within seconds
    for number in (signal.SIGINT, signal.SIGUSR1):  # SLURM may announce a preemption to everyone
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    sys.excepthook = _unless_it_hung_up


def _unless_it_hung_up(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What a thread that hands batches over has to say, but that nobody takes them any more."""
    if not issubclass(kind, ConnectionError):
        sys.__excepthook__(kind, error, trace)


def end_workers() -> None:
    """End the loaders' processes that are left when training has failed, while something still holds their loader.

    Python would ask each to terminate as it exits, which they pass over once (see `stop_with_parent`), and wait for ever.
    """
    handles_signals = current_thread() is main_thread()
    if handles_signals:  # torch's handler says that a worker is lost, in place of what has failed
        before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()
            process.join()
    if handles_signals:
        signal.signal(signal.SIGCHLD, before)

"""What the processes of one job, one per device, say to each other beside gradients. Alone, each says it to itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from sdscratch.console import warn
from sdscratch.errors import LostRankError, SdscratchError

T = TypeVar("T")
SECONDS_OF_SILENCE = 15.0


def together() -> bool:
    """Whether this process has met others."""
    return dist.is_available() and dist.is_initialized()


@contextmanager
def patience(world: int) -> Iterator[None]:
    """In here this process waits for the others of `world` ranks, and says so when it takes long.

    Raises LostRankError where they do not come, or no meeting is possible.
    """
    rank = os.environ.get("RANK", os.environ.get("SLURM_PROCID"))

    def others() -> str:
        return f"the others of {world} at {os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"

    def say_so() -> None:
        warn(f"rank {rank} is waiting for {others()}, which torchrun or srun should have started")

    timer = threading.Timer(SECONDS_OF_SILENCE, say_so)
    timer.daemon = True
    timer.start()
    try:
        yield
    except dist.DistError as error:
        raise LostRankError(f"rank {rank} cannot meet {others()}: {str(error).partition(chr(10))[0]}") from error
    finally:
        timer.cancel()


def is_first() -> bool:
    """Whether this is the rank that writes."""
    return not together() or dist.get_rank() == 0


def agreed(decide: Callable[[], T]) -> T:
    """What `decide()` gives on the first rank, on all of them; or the error meant for users that it raises there."""
    said: list[tuple[T | None, SdscratchError | None]] = [(None, None)]
    if is_first():
        try:
            said = [(decide(), None)]
        except SdscratchError as error:
            said = [(None, error)]
    if together():
        dist.broadcast_object_list(said)
    value, refused = said[0]
    if refused is not None:
        raise refused
    return value  # type: ignore[return-value]


def first_then_others(make: Callable[[], T]) -> T:
    """`make()` on the first rank, which may leave files for the others, then on those."""
    made: list[T] = []
    agreed(lambda: made.append(make()))
    return made[0] if made else make()


def add_up(values: Tensor) -> Tensor:
    """The sum of every rank's `values`, which are on the device that collectives need; one all-reduce."""
    if together():
        dist.all_reduce(values)
    return values


def highest(number: int, device: torch.device) -> int:
    """Of the numbers that the ranks have. device: the one that collectives need."""
    highest = torch.tensor(number, device=device)
    if together():
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest)


def share(count: int) -> range:
    """Which of `count` things this rank does: as many as the others, or one less, and those that follow one another."""
    if not together():
        return range(count)
    rank, size = dist.get_rank(), dist.get_world_size()
    return range(rank * count // size, (rank + 1) * count // size)


def join_rows(rows: Tensor) -> Tensor:
    """The rows of all ranks, which may differ in number, one rank's after the other's."""
    if not together():
        return rows
    counts = [torch.zeros(1, dtype=torch.int64, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([len(rows)], device=rows.device))
    most = max(int(count) for count in counts)
    padded = torch.cat([rows, rows.new_zeros(most - len(rows), *rows.shape[1:])])
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    return torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])


def meet_and_part() -> None:
    """Wait for all ranks, then be alone: whoever ends now takes nobody along who still has to save.

    What counts has been done by the first rank, which minds nobody's absence; without it the others have failed.
    """
    if together():
        with suppress(RuntimeError) if is_first() else nullcontext():
            dist.barrier()
        dist.destroy_process_group()

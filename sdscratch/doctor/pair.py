"""Can two processes of this machine train together? Tried with a real all-reduce."""

from __future__ import annotations

import os
import socket
import sys
import time
from contextlib import suppress
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any, cast

import torch
import torch.distributed as dist

from sdscratch.doctor.finding import Finding

REMEDY = {
    "gloo": "GLOO_SOCKET_IFNAME=lo for one machine; let the firewall pass its own connections; train on one device",
    "nccl": "NCCL_DEBUG=INFO tells more; NCCL_P2P_DISABLE=1 helps where GPUs cannot reach each other; train on one device",
}


class Pair:
    """Processes that add up their numbers by `backend`, at work from now on; `findings` waits for them.

    nccl: each on a GPU of its own; gloo: on the CPU. seconds: from now on, after which they are ended.
    """

    def __init__(self, backend: str, members: int = 2, seconds: float = 20.0) -> None:
        # A forked process is there at once; one that is to use CUDA must start afresh.
        context: Any = get_context("fork" if backend == "gloo" and sys.platform == "linux" else "spawn")
        self.backend, self.seconds, self.start = backend, seconds, time.monotonic()
        self.ends, self.processes = list[Connection](), list[Any]()
        port = _free_port()
        for rank in range(members):
            ours, theirs = context.Pipe(duplex=False)
            work = (rank, members, port, backend, seconds, theirs)
            process = context.Process(target=_member, args=work, daemon=True)
            process.start()
            theirs.close()
            self.ends.append(ours)
            self.processes.append(process)

    def findings(self) -> list[Finding]:
        """One: whether the sum was right in every process."""
        said: dict[Any, str | float] = dict.fromkeys(self.ends, f"no answer within {self.seconds:.0f} s")
        waiting: list[Any] = list(self.ends)
        while waiting and (ready := wait(waiting, timeout=max(0.0, self.start + self.seconds - time.monotonic()))):
            for end in cast(list[Connection], ready):
                said[end] = "its process died"
                with suppress(EOFError):
                    said[end] = end.recv()
                waiting.remove(end)
        for process in self.processes:
            process.kill()
            process.join()
        problems = [text for text in said.values() if isinstance(text, str)]
        if problems:
            return [Finding("fail", self.backend, problems[0], REMEDY[self.backend])]
        slowest = max(second for second in said.values() if isinstance(second, float))
        return [Finding("ok", self.backend, f"{len(said)} processes added up their numbers in {slowest:.1f} s")]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank: int, members: int, port: int, backend: str, seconds: float, end: Connection) -> None:
    """One process of the group; sends the seconds that it took, or what went wrong."""
    start = time.monotonic()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what the libraries print about what is reported here
    try:
        device = torch.device("cuda", rank) if backend == "nccl" else torch.device("cpu")
        dist.init_process_group(
            backend, f"tcp://127.0.0.1:{port}", timedelta(seconds=seconds), rank=rank, world_size=members
        )
        number = torch.full((1,), rank + 1.0, device=device)
        dist.all_reduce(number)
        expected = members * (members + 1) / 2
        is_right = number.item() == expected
        end.send(time.monotonic() - start if is_right else f"the sum is {number.item()}, not {expected}")
        dist.destroy_process_group()
    except Exception as error:
        end.send(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}")

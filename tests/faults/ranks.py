"""Ranks of one job, forked from the warm process: what torchrun or srun would start, without paying for imports."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from random import randrange

from harness import PATIENCE, Attempt, ForkServer, Running


def free_port() -> int:
    """None of those that the system gives to whoever asks for any: one of these might be gone by the time it is used."""
    while True:
        port = randrange(10_000, 30_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("localhost", port))
            return port


class Job:
    """Command lines that train together, one per rank, on this machine."""

    def __init__(self, server: ForkServer, words: Sequence[str], world: int = 2, env: dict[str, str] | None = None):
        port = free_port()
        self.ranks: list[Running] = []
        words = [*words, "trainer=ddp", "trainer.accelerator=cpu", f"trainer.devices={world}"]
        for rank in range(world):
            place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
            said = {name: str(value) for name, value in (place | meeting).items()}
            self.ranks.append(server.start(words, env={**(env or {}), **said}))

    def kill(self, number: int = signal.SIGKILL, rank: int | None = None) -> None:
        """Signal one rank, with its workers if it is to be killed; or all."""
        for running in self.ranks if rank is None else [self.ranks[rank]]:
            running.kill(number, "group" if number == signal.SIGKILL else "parent")

    def ends_within(self, seconds: float) -> bool:
        """Whether the first rank does."""
        return self.ranks[0].ends_within(seconds)

    def wait(self, timeout: float = PATIENCE) -> list[Attempt]:
        """How each ended."""
        return [running.wait(timeout) for running in self.ranks]

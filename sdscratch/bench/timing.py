"""Who is faster: contenders take turns in one process, forwards and backwards, and one of them runs twice under two names.

On a CPU the process's own CPU time counts, of which the least of all turns is the most repeatable number that a busy machine
has to offer. On a GPU its events count, of which the median does, because a warm chip changes its clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import Any, Literal

import torch

NULL_TOLERANCE = 0.03
"""Twice the same may differ by so much; beyond that the machine was too restless to tell anything."""

LEAST_ROUNDS = 2
"""Forwards and backwards."""

AGAIN = "{}, again"
"""What the second turn of the same contender is called."""

Verdict = Literal["ok", "slower", "inconclusive"]


@dataclass
class Laps:
    """Seconds of every turn of every contender, of the process or the device (`seconds`) and by the clock (`wall`)."""

    device: torch.device
    seconds: dict[str, list[float]] = field(default_factory=dict)
    wall: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def lap(self, name: str) -> Iterator[None]:
        """What is done in here is a turn of this contender."""
        on_cuda = self.device.type == "cuda"
        if on_cuda:
            torch.cuda.synchronize(self.device)
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        seconds = time.process_time() - cpu
        if on_cuda:
            events[1].record()
            torch.cuda.synchronize(self.device)
            seconds = events[0].elapsed_time(events[1]) / 1000
        self.seconds.setdefault(name, []).append(seconds)
        self.wall.setdefault(name, []).append(time.perf_counter() - wall)

    def of(self, name: str) -> float:
        """What a turn takes, in seconds."""
        laps = self.seconds[name]
        return median(laps) if self.device.type == "cuda" else min(laps)

    def times_as_fast(self, name: str, other: str) -> float:
        """How much faster one is than another; 2 means in half the time."""
        return self.of(other) / self.of(name)

    def spread(self, name: str, other: str) -> tuple[float, float, float]:
        """Of the same ratio round by round: a tenth lies below, half, nine tenths."""
        ratios = [theirs / ours for ours, theirs in zip(self.seconds[name], self.seconds[other], strict=True)]
        if len(ratios) == 1:
            return (ratios[0],) * 3
        tenths = quantiles(ratios, n=10, method="inclusive")
        return tenths[0], median(ratios), tenths[-1]


def turns(names: list[str], rounds: int, until: float = math.inf) -> Iterator[str]:
    """Each of them once per round, in the order given, then in reverse, and so on: A B B A.

    until: on time.perf_counter; when it has come, no further round begins, but that there are two.
    """
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.perf_counter() > until:
            return
        yield from names if number % 2 == 0 else reversed(names)


def race(
    contenders: Mapping[str, Callable[[], Any]], rounds: int, device: torch.device, null: str, until: float = math.inf
) -> Laps:
    """Let them take turns, after one each that does not count. `null` runs twice as often, as if there were two of it.

    until: see `turns`.
    """
    everyone = {**contenders, AGAIN.format(null): contenders[null]}
    for contender in contenders.values():
        contender()
    laps = Laps(device)
    for name in turns(list(everyone), rounds, until):
        with laps.lap(name):
            everyone[name]()
    return laps


@dataclass(frozen=True)
class Comparison:
    """How many times as fast ours is as a peer, who took `seconds` each. null: the same of the peer to itself.

    p10, p50, p90: of the ratio round by round. floor: below it ours has become slower than it may be. goal: where it should be.
    """

    title: str
    ours: str
    peer: str
    ratio: float
    null: float
    p10: float
    p50: float
    p90: float
    seconds: dict[str, float]
    wall: dict[str, float]
    floor: float | None = None
    goal: float | None = None

    @classmethod
    def of(
        cls,
        title: str,
        laps: Laps,
        ours: str,
        peer: str,
        floor: float | None = None,
        goal: float | None = None,
        null: str | None = None,
    ) -> Comparison:
        """null: who ran twice; None: the peer."""
        p10, p50, p90 = laps.spread(ours, peer)
        return cls(
            title,
            ours,
            peer,
            laps.times_as_fast(ours, peer),
            laps.times_as_fast(AGAIN.format(null or peer), null or peer),
            p10,
            p50,
            p90,
            {name: laps.of(name) for name in laps.seconds},
            {name: median(laps.wall[name]) for name in laps.wall},
            floor,
            goal,
        )

    @property
    def verdict(self) -> Verdict:
        """A restless machine is no verdict on anything."""
        if abs(self.null - 1) > NULL_TOLERANCE:
            return "inconclusive"
        return "slower" if self.floor is not None and self.ratio < self.floor else "ok"

    @property
    def shortfall(self) -> str:
        """What to say of it where it is slower."""
        return f"{self.title}: {self.ratio:.3f} times as fast as {self.peer}, expected at least {self.floor}"

"""The training step of a network so large that a machine holds one contender at a time: each in a process of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from sdscratch.bench.peers import DiffusersScript
from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.steps import OURS, WARM_UP, OurSteps, our_steps
from sdscratch.bench.timing import AGAIN, Laps, turns
from sdscratch.bench.train import PEER, comparisons
from sdscratch.errors import LostRankError
from sdscratch.models import UNet
from sdscratch.prepare.engine import map_shards
from sdscratch.training.throughput import memory_gb

PROCESSES = 2  # of each contender: A B B A
BYTES = 22  # per parameter, as measured: 20 of weights, gradients, moments and average, the rest of a small batch


@dataclass
class Alone:
    """What a process brings back. memory: the most that it held, in GB. ours: None of a peer."""

    laps: Laps
    memory: float
    ours: OurSteps | None = None


def bench_train_apart(
    config: Mapping[str, Any], parameters: int, setting: Setting, begin: Callable[[], None] | None = None
) -> Findings:
    """As `bench_train` on a CPU, but a turn is a process of several steps, of which the first do not count.

    config, parameters: of the network, which nobody builds here. begin: what each process does first, a function of a module.
    Raises LostRankError where a process was killed.
    """
    some = replace(setting, rounds=max(1, setting.rounds // PROCESSES))
    alone = partial(step_alone, dict(config), some, torch.get_num_threads(), begin)
    ran: dict[str, list[Alone]] = {OURS: [], PEER: [], AGAIN.format(PEER): []}
    for name in turns([*ran], PROCESSES):
        try:
            ran[name] += map_shards(alone, [name], workers=1)
        except LostRankError as error:
            needed = BYTES * parameters / 1e9
            raise LostRankError(
                f"the process of {name} was killed, most likely for want of memory: it takes some {needed:.0f} GB"
            ) from error
    return joined(ran, config, parameters, setting)


def joined(
    ran: Mapping[str, Sequence[Alone]], config: Mapping[str, Any], parameters: int, setting: Setting
) -> Findings:
    """What processes have brought back, as if it had been one. ran: those of each contender, in their sequence."""
    laps = Laps(setting.device)
    for name, processes in ran.items():
        laps.seconds[name] = [seconds for one in processes for seconds in one.laps.seconds[name]]
        laps.wall[name] = [seconds for one in processes for seconds in one.laps.wall[name]]
    first = ran[OURS][0].ours
    assert first is not None
    facts = replace(first, laps=laps).facts(config, setting)
    facts += [Fact(f"memory of the process, {name}", max(one.memory for one in ran[name]), "GB") for name in ran]
    return Findings(comparisons(parameters, setting, laps), facts, ["all that takes a GPU"])


def step_alone(
    config: Mapping[str, Any], setting: Setting, threads: int, begin: Callable[[], None] | None, name: str
) -> Alone:
    """The steps of one contender, in this process."""
    if begin is not None:
        begin()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    ours = None
    if name == OURS:
        ours = our_steps(UNet.from_config(config), setting)
        laps = ours.laps
    else:
        laps, step = Laps(setting.device), DiffusersScript(dict(config), setting).step
        for _ in range(WARM_UP):
            step()
        for _ in range(setting.rounds):
            with laps.lap(name):
                step()
    return Alone(laps, memory_gb(setting.device), ours)

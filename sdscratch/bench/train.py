"""A whole training step, through Lightning, loader and all, beside those of others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from sdscratch.bench.peers import DiffusersScript, mosaicml_step
from sdscratch.bench.report import Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.steps import OURS, our_steps
from sdscratch.bench.timing import AGAIN, Comparison, Laps
from sdscratch.models import UNet

PEER, MOSAICML = "diffusers' example script", "MosaicML's step, re-created"
AS_SHIPPED = f"{PEER}, VAE and CLIP on line"
CLIP_WIDTH = 768  # of the CLIP that it comes with
LARGE = 500_000_000
"""Parameters from which on a network counts as full-size, where the optimizer weighs more."""


def bench_train(
    network: UNet, setting: Setting, matrix_rate: float | None = None, trace: Path | None = None
) -> Findings:
    """Steps of forward, loss, backward, clipping, AdamW and the average. Peers that do not fit into memory are named; without
    the one that the others are measured by, ours go alone.

    matrix_rate: TFLOP/s of a matrix product on this device, measured in the same run, to relate ours to. trace: where a
    profiler's trace of a step goes.
    """
    peers, too_large = _peers(network.config, setting), []
    for name, step in list(peers.items()):
        try:
            step()
        except torch.OutOfMemoryError:
            del peers[name]
            too_large.append(f"{name}: it does not fit into memory")
    others = {**peers, AGAIN.format(PEER): peers[PEER]} if PEER in peers else {}
    ran = our_steps(network, setting, others, trace)
    facts = ran.facts(network.config, setting, matrix_rate)
    missing = "MosaicML's step, the example script with VAE and CLIP on line, MFU, peak memory (no GPU here)"
    return Findings(
        comparisons(parameters_of(network), setting, ran.laps), facts, too_large if setting.on_cuda else [missing]
    )


def parameters_of(network: UNet) -> int:
    """How many it has, be they there or not."""
    return sum(weight.numel() for weight in network.parameters())


def comparisons(parameters: int, setting: Setting, laps: Laps) -> list[Comparison]:
    """Of our step with everybody who had turns beside it."""
    if PEER not in laps.seconds:
        return []
    if not setting.on_cuda:
        floor, goal = (1.12, 1.20) if parameters > LARGE else (1.05, 1.10)
        return [Comparison.of("training step", laps, OURS, PEER, floor, goal)]
    wanted = {PEER: (1.4, 1.6), MOSAICML: (1.3, 1.6), AS_SHIPPED: (2.0, 2.5)}
    return [
        Comparison.of("training step", laps, OURS, peer, *wanted[peer], null=PEER)
        for peer in wanted
        if peer in laps.seconds
    ]


def _peers(config: Mapping[str, Any], setting: Setting) -> dict[str, Callable[[], None]]:
    script = DiffusersScript(dict(config), setting)
    peers: dict[str, Callable[[], None]] = {PEER: script.step}
    if setting.on_cuda:
        peers[MOSAICML] = mosaicml_step(dict(config), setting)
        if config["cross_attention_dim"] == CLIP_WIDTH and config["in_channels"] == 4:
            peers[AS_SHIPPED] = script.step_on_line
    return peers

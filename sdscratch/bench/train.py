"""A whole training step, through Lightning, loader and all, beside those of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.bench.peers import LR, MAX_GRAD_NORM, WEIGHT_DECAY, DiffusersScript, mosaicml_step
from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.shards import write_random_latents
from sdscratch.bench.timing import AGAIN, Comparison, Laps, turns
from sdscratch.bench.work import unet_inputs
from sdscratch.data import DataModule, LatentCollate
from sdscratch.diffusion import DiffusionObjective, NoiseSchedule
from sdscratch.models import UNet, new_clip, new_vae
from sdscratch.models.encoders import FrozenEncoders
from sdscratch.pipeline import SamplingDefaults
from sdscratch.training import LatentDiffusion, WarmupConstant

OURS, PEER, MOSAICML = "sdscratch", "diffusers' example script", "MosaicML's step, re-created"
AS_SHIPPED = f"{PEER}, VAE and CLIP on line"
CLIP_WIDTH = 768  # of the CLIP that it comes with
WARM_UP = 2  # the first turn only fetches
LARGE = 500_000_000
"""Parameters from which on a network counts as full-size, where the optimizer weighs more."""


def bench_train(
    network: UNet, setting: Setting, matrix_rate: float | None = None, trace: Path | None = None
) -> Findings:
    """Steps of forward, loss, backward, clipping, AdamW and the average.

    matrix_rate: TFLOP/s of a matrix product on this device, measured in the same run, to relate ours to. trace: where a
    profiler's trace of a step goes.
    """
    peers, too_large = _peers(network.config, setting), []
    for name, step in list(peers.items()):
        try:
            step()
        except torch.OutOfMemoryError:
            if name == PEER:
                raise
            del peers[name]
            too_large.append(f"{name}: it does not fit into memory")
    of_peers = torch.cuda.memory_allocated(setting.device) if setting.on_cuda else 0
    laps, shares = Laps(setting.device), Shares(setting)
    with TemporaryDirectory() as folder:
        module, data = _stage(network, setting, Path(folder))
        trainer = _trainer(setting, shares)
        data.trainer = trainer
        loader = iter(data.train_dataloader())
        taking_turns = TakingTurns(loader, {**peers, AGAIN.format(PEER): peers[PEER]}, setting.rounds, laps, trace)
        trainer.fit(module, taking_turns)
    facts = _facts(network, setting, laps, matrix_rate) + shares.facts()
    waited = taking_turns.waited / sum(laps.wall[OURS])
    facts.append(Fact("waiting for the loader, share of our step", waited, "", 0.003 if setting.on_cuda else None))
    if setting.on_cuda:
        facts.append(Fact("peak memory, ours", (taking_turns.peak_memory - of_peers) / 1e9, "GB"))
    missing = "MosaicML's step, the example script with VAE and CLIP on line, MFU, peak memory (no GPU here)"
    return Findings(_comparisons(network, setting, laps), facts, too_large if setting.on_cuda else [missing])


def _peers(config: dict[str, Any], setting: Setting) -> dict[str, Callable[[], None]]:
    script = DiffusersScript(config, setting)
    peers: dict[str, Callable[[], None]] = {PEER: script.step}
    if setting.on_cuda:
        peers[MOSAICML] = mosaicml_step(config, setting)
        if config["cross_attention_dim"] == CLIP_WIDTH and config["in_channels"] == 4:
            peers[AS_SHIPPED] = script.step_on_line
    return peers


def _comparisons(network: UNet, setting: Setting, laps: Laps) -> list[Comparison]:
    if not setting.on_cuda:
        parameters = sum(weight.numel() for weight in network.parameters())
        floor, goal = (1.12, 1.20) if parameters > LARGE else (1.05, 1.10)
        return [Comparison.of("training step", laps, OURS, PEER, floor, goal)]
    wanted = {PEER: (1.4, 1.6), MOSAICML: (1.3, 1.6), AS_SHIPPED: (2.0, 2.5)}
    return [
        Comparison.of("training step", laps, OURS, peer, *wanted[peer], null=PEER)
        for peer in wanted
        if peer in laps.seconds
    ]


def _facts(network: UNet, setting: Setting, laps: Laps, matrix_rate: float | None) -> list[Fact]:
    images = setting.batch_size / laps.of(OURS)
    flops = flops_of(network, setting) / setting.batch_size
    facts = [Fact("images per second", images, ""), Fact("work of a step, per image", flops / 1e12, "TFLOP")]
    if matrix_rate is not None:
        facts.append(Fact("share of the rate of a matrix product", images * flops / 1e12 / matrix_rate, ""))
    return facts


class TakingTurns(Iterable[Any]):
    """A loader that lets the others have their turns while Lightning waits for its batch.

    What lies between handing out a batch and being asked for the next is one whole step of ours, with all that surrounds it.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        others: dict[str, Callable[[], None]],
        rounds: int,
        laps: Laps,
        trace: Path | None = None,
    ) -> None:
        self.batches, self.others, self.rounds, self.laps, self.trace = batches, others, rounds, laps, trace
        self.waited = 0.0  # seconds, for the loader
        self.peak_memory = 0  # bytes on CUDA, while it was our turn

    def __iter__(self) -> Iterator[Any]:
        for _ in range(WARM_UP):
            yield next(self.batches)
        for name in turns([OURS, *self.others], self.rounds):
            with self.laps.lap(name):
                if name == OURS:
                    yield from self._ours()
                else:
                    self.others[name]()
        if self.trace is not None:
            with profile() as profiler:
                yield next(self.batches)
            profiler.export_chrome_trace(str(self.trace))

    def _ours(self) -> Iterator[Any]:
        on_cuda = self.laps.device.type == "cuda"
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(self.laps.device)
        start = time.perf_counter()
        batch = next(self.batches)
        self.waited += time.perf_counter() - start
        yield batch
        if on_cuda:
            self.peak_memory = max(self.peak_memory, torch.cuda.max_memory_allocated(self.laps.device))


class Shares(L.Callback):
    """How the time of our steps is shared out between their parts."""

    PARTS = ("forward", "backward", "clipping, optimizer and average")

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.marks: list[Any] = []
        self.steps: list[list[Any]] = []

    def mark(self, *_: Any) -> None:
        if self.setting.on_cuda:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.process_time())

    on_before_backward = on_after_backward = mark

    def on_train_batch_start(self, *_: Any) -> None:
        self.marks = []
        self.mark()

    def on_train_batch_end(self, *_: Any) -> None:
        self.mark()
        self.steps.append(self.marks)

    def facts(self) -> list[Fact]:
        """Shares of the fastest step, or on CUDA of all after the first."""
        if self.setting.on_cuda:
            torch.cuda.synchronize(self.setting.device)
        steps = [[self._between(a, b) for a, b in zip(m, m[1:], strict=False)] for m in self.steps[WARM_UP:]]
        least = [min(parts) for parts in zip(*steps, strict=True)]
        return [
            Fact(f"of our step, {name}", seconds / sum(least), "")
            for name, seconds in zip(self.PARTS, least, strict=True)
        ]

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.setting.on_cuda else end - start


def flops_of(network: UNet, setting: Setting) -> int:
    """Of forward and backward pass of a step, nothing computed twice."""
    shapes = unet_inputs(network.config, setting.batch_size, setting.latent_size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet.from_config(network.config)(*[torch.empty(shape) for shape in shapes]).sum().backward()
    return counter.get_total_flops()


def _stage(network: UNet, setting: Setting, folder: Path) -> tuple[LatentDiffusion, DataModule]:
    """As `train` would build it for shards of latents and captions' states, which is what the others are given."""
    width, channels = network.config["cross_attention_dim"], network.config["in_channels"]
    text = new_clip(
        ["a photograph"], hidden_size=width, num_hidden_layers=1, num_attention_heads=8, image_size=32, patch_size=16
    )
    states_shape = (77, width)
    vae = new_vae(
        block_out_channels=[8] * 4, layers_per_block=1, latent_channels=channels, norm_num_groups=4, sample_size=32
    )
    objective = DiffusionObjective(NoiseSchedule())
    module = LatentDiffusion(
        network,
        FrozenEncoders(vae, text),
        objective,
        SamplingDefaults(8 * setting.latent_size),
        ["a photograph"],
        optimizer=partial(torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY, fused=True),
        lr_schedule=WarmupConstant(),
        max_grad_norm=MAX_GRAD_NORM,
        global_batch_size=setting.batch_size,
        channels_last=setting.channels_last,
        compile=setting.compile,
    )
    write_random_latents(folder, 16 * setting.batch_size, setting.latent_size, channels, states_shape)
    workers = 4 if setting.on_cuda else 0
    data = DataModule(str(folder), 8 * setting.latent_size, setting.batch_size, seed=0, num_workers=workers)
    data.collate = LatentCollate(0, objective.timesteps, caption_dropout=0.1)
    data.text_shape = states_shape
    data.prepare_data()
    return module, data


def _trainer(setting: Setting, *callbacks: L.Callback) -> L.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return L.Trainer(
        accelerator="gpu" if setting.on_cuda else "cpu",
        devices=1,
        precision=setting.precision,
        max_epochs=1,
        callbacks=list(callbacks),
        **quiet,
    )

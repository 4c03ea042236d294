"""Training steps of ours, through Lightning, loader and all, in turns with the steps of others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning as L
import torch
from torch.profiler import profile
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.bench.peers import LR, MAX_GRAD_NORM, WEIGHT_DECAY
from sdscratch.bench.report import Fact
from sdscratch.bench.setting import Setting
from sdscratch.bench.shards import write_random_latents
from sdscratch.bench.timing import Laps, turns
from sdscratch.bench.work import unet_inputs
from sdscratch.data import DataModule, LatentCollate
from sdscratch.diffusion import DiffusionObjective, NoiseSchedule
from sdscratch.models import UNet, new_clip, new_vae
from sdscratch.models.encoders import FrozenEncoders
from sdscratch.pipeline import SamplingDefaults
from sdscratch.training import LatentDiffusion, WarmupConstant

OURS = "sdscratch"
WARM_UP = 2  # batches, for one step: Lightning asks for the next batch before it takes a step
IMAGES, PEAK_MEMORY, FIRST_STEP = (
    "images per second",
    "peak memory, ours",
    "from weights and data to the end of our first step",
)


@dataclass
class OurSteps:
    """laps: of everybody. parts: seconds of each part of our steps. waited: the share of our steps that the loader took.

    first: seconds by the clock from weights and data until our first step was done, with all that was compiled for it.
    memory: the most bytes that were taken on CUDA in a turn of ours, beside what others held before.
    """

    laps: Laps
    parts: dict[str, float]
    waited: float
    first: float
    memory: int

    def facts(self, config: Mapping[str, Any], setting: Setting, matrix_rate: float | None = None) -> list[Fact]:
        """matrix_rate: TFLOP/s of a matrix product on this device, measured in the same run."""
        images = setting.batch_size / self.laps.of(OURS)
        flops = flops_of(config, setting) / setting.batch_size
        facts = [Fact(IMAGES, images, ""), Fact("work of a step, per image", flops / 1e12, "TFLOP")]
        if matrix_rate is not None:
            facts.append(Fact("share of the rate of a matrix product", images * flops / 1e12 / matrix_rate, ""))
        whole = sum(self.parts.values())
        facts += [Fact(f"of our step, {name}", seconds / whole, "") for name, seconds in self.parts.items()]
        goal = 0.003 if setting.on_cuda else None
        facts.append(Fact("waiting for the loader, share of our step", self.waited, "", goal))
        if setting.on_cuda:
            facts.append(Fact(PEAK_MEMORY, self.memory / 1e9, "GB"))
            facts.append(Fact(FIRST_STEP, self.first, "s"))
        return facts


def our_steps(
    network: UNet, setting: Setting, others: Mapping[str, Callable[[], None]] | None = None, trace: Path | None = None
) -> OurSteps:
    """Forward, loss, backward, clipping, AdamW and the average, in turns with `others`.

    trace: where a profiler's trace of a step goes.
    """
    of_others = 0
    if setting.on_cuda:
        weights = sum(weight.nbytes for weight in network.parameters() if weight.is_cuda)
        of_others = torch.cuda.memory_allocated(setting.device) - weights
    laps, shares = Laps(setting.device), Shares(setting)
    with TemporaryDirectory() as folder:
        module, data = _stage(network, setting, Path(folder))
        start = time.perf_counter()
        trainer = _trainer(setting, shares)
        data.trainer = trainer
        loader = iter(data.train_dataloader())
        taking_turns = TakingTurns(loader, dict(others or {}), setting, laps, trace)
        trainer.fit(module, taking_turns)
    return OurSteps(
        laps,
        shares.seconds(),
        taking_turns.waited / sum(laps.wall[OURS]),
        taking_turns.first_done - start,
        taking_turns.peak_memory - of_others,
    )


class TakingTurns(Iterable[Any]):
    """A loader that lets the others have their turns while Lightning waits for its batch.

    What lies between handing out a batch and being asked for the next is one whole step of ours, with all that surrounds it.
    """

    def __init__(
        self,
        batches: Iterator[Any],
        others: dict[str, Callable[[], None]],
        setting: Setting,
        laps: Laps,
        trace: Path | None = None,
    ) -> None:
        self.batches, self.others, self.setting, self.laps, self.trace = batches, others, setting, laps, trace
        self.waited = 0.0  # seconds, for the loader
        self.first_done = 0.0  # by the clock
        self.peak_memory = 0  # bytes on CUDA, while it was our turn

    def __iter__(self) -> Iterator[Any]:
        for _ in range(WARM_UP):
            yield next(self.batches)
        _wait_for(self.laps.device)
        self.first_done = time.perf_counter()
        for name in turns([OURS, *self.others], self.setting.rounds, self.setting.until):
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

    def seconds(self) -> dict[str, float]:
        """Of each part, the least of all steps after the first."""
        _wait_for(self.setting.device)
        steps = [[self._between(a, b) for a, b in zip(m, m[1:], strict=False)] for m in self.steps[WARM_UP:]]
        return dict(zip(self.PARTS, map(min, *steps) if len(steps) > 1 else steps[0], strict=True))

    def _between(self, start: Any, end: Any) -> float:
        return start.elapsed_time(end) / 1000 if self.setting.on_cuda else end - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def flops_of(config: Mapping[str, Any], setting: Setting) -> int:
    """Of forward and backward pass of a step, nothing computed twice."""
    shapes = unet_inputs(dict(config), setting.batch_size, setting.latent_size)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet.from_config(config)(*[torch.empty(shape) for shape in shapes]).sum().backward()
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
        memory_budget=setting.memory_budget,
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
        benchmark=setting.on_cuda or None,
        max_epochs=1,
        callbacks=list(callbacks),
        **quiet,
    )

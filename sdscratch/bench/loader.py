"""Latents and captions out of shards, beside plain webdataset over the same files."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import webdataset
from torch import Tensor

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.shards import write_random_latents
from sdscratch.bench.timing import Comparison, race
from sdscratch.data import DataModule, LatentCollate, Order, ShardIndex, latents
from sdscratch.data.captions import captions_of, choose, record_of

OURS, PEER = "sdscratch", "webdataset"
SAMPLES = 1500
RESOLUTION = 256
BATCH, BATCHES = 96, 5
STEP = 0.001  # seconds per sample: at 256 px an H200 should train on 700 samples per second
WORKERS, STEPS = 2, 20


def bench_loader(setting: Setting) -> Findings:
    """Samples per CPU second, latents unpacked and a caption chosen; whole batches with their draws; how long a step waits."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_random_latents(folder, SAMPLES, RESOLUTION // 8)
        contenders = {OURS: partial(read, folder), PEER: partial(read_by_webdataset, folder)}
        laps = race(contenders, max(3, setting.rounds // 3), torch.device("cpu"), PEER, setting.until)
        compared = Comparison.of("reading latents and captions", laps, OURS, PEER, 1.3)
        facts = [
            Fact("latents and captions per second of a core", SAMPLES / laps.of(OURS), ""),
            Fact("in whole batches, per second of a core", samples_per_second_in_batches(folder), ""),
            Fact(
                f"waiting for {WORKERS} workers, share of steps that sleep 1 ms per sample",
                share_of_waiting(folder),
                "",
                0.01,
            ),
        ]
    return Findings([compared], facts)


def read(folder: Path) -> int:
    """All samples, in the order of training: how many."""
    index = ShardIndex.open(folder)
    order = Order(index.shard_sizes, seed=0, window=4)
    for position in range(len(index)):
        members = index.read(order.at(position))
        captions = captions_of(members, record_of(members))
        assert captions[choose(captions, 0.5)] and latents.unpack(members["latent.npy"]).size
    return len(index)


def read_by_webdataset(folder: Path) -> int:
    """All samples, decoded, in the order in which they lie there: how many."""
    files = sorted(map(str, folder.glob("*.tar")))
    pairs = webdataset.WebDataset(files, shardshuffle=False).decode().to_tuple("latent.npy", "json")
    return sum(bool(moments.size and record["captions"]) for moments, record in pairs)


def samples_per_second_in_batches(folder: Path) -> float:
    """Of a core: noise, timesteps, dropped captions and collating included."""
    batches = iter(_data(folder, BATCH, workers=0).train_dataloader())
    next(batches)
    start = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * BATCH / (time.process_time() - start)


def share_of_waiting(folder: Path) -> float:
    """By the clock, of steps in which the device is at work for STEP per sample and this process is not, as beside a GPU.

    What a worker has to hand over, a thread of this process takes while the step is at work, on CUDA one of torch's own.
    """
    batches = iter(_data(folder, BATCH, WORKERS).train_dataloader())
    for _ in range(1 + WORKERS):
        next(batches)
    start, waited = time.perf_counter(), 0.0
    for _ in range(STEPS):
        time.sleep(STEP * BATCH)
        asked = time.perf_counter()
        next(batches)
        waited += time.perf_counter() - asked
    return waited / (time.perf_counter() - start)


def _data(folder: Path, batch_size: int, workers: int) -> DataModule:
    data = DataModule(str(folder), RESOLUTION, batch_size, seed=0, num_workers=workers)
    data.collate = LatentCollate(0, _timesteps, caption_dropout=0.1)
    return data


def _timesteps(fractions: Tensor) -> Tensor:
    return (1000 * fractions).long()

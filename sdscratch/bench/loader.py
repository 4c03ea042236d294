"""Latents and captions out of shards, beside plain webdataset over the same files."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import webdataset

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


def bench_loader(setting: Setting) -> Findings:
    """Samples per CPU second, latents unpacked and a caption chosen; whole batches with their draws; how long a step waits."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_random_latents(folder, SAMPLES, RESOLUTION // 8)
        index = ShardIndex.open(folder)
        order = Order(index.shard_sizes, seed=0, window=4)

        def ours() -> None:
            for position in range(SAMPLES):
                members = index.read(order.at(position))
                captions = captions_of(members, record_of(members))
                assert captions[choose(captions, 0.5)] and latents.unpack(members["latent.npy"]).size

        def theirs() -> None:
            files = sorted(map(str, folder.glob("*.tar")))
            pairs = webdataset.WebDataset(files, shardshuffle=False).decode().to_tuple("latent.npy", "json")
            assert sum(bool(moments.size and record["captions"]) for moments, record in pairs) == SAMPLES

        laps = race({OURS: ours, PEER: theirs}, max(3, setting.rounds // 3), torch.device("cpu"), null=PEER)
        compared = Comparison.of("reading latents and captions", laps, OURS, PEER, 1.3)
        facts = [
            Fact("latents and captions per second of a core", SAMPLES / laps.of(OURS), ""),
            Fact("in whole batches, per second of a core", _in_batches(folder), ""),
        ]
    return Findings([compared], facts)


def _in_batches(folder: Path) -> float:
    data = DataModule(str(folder), RESOLUTION, BATCH, seed=0)
    data.collate = LatentCollate(0, lambda u: (1000 * u).long(), caption_dropout=0.1)
    batches = iter(data.train_dataloader())
    next(batches)
    start = time.process_time()
    for _ in range(BATCHES):
        next(batches)
    return BATCHES * BATCH / (time.process_time() - start)

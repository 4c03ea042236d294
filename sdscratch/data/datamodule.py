"""The loaders of a run: which positions each rank reads, and nothing else that could matter to a result."""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from sdscratch.data.batch import VALIDATION_SEED, Collate, ImageCollate
from sdscratch.data.dataset import OnBad, ShardDataset
from sdscratch.data.index import ShardIndex
from sdscratch.data.order import Order, data_step
from sdscratch.errors import ConfigError, DataError, SdscratchError, check_whole


class PositionSampler:
    """The positions of each micro-batch of one rank, without end, from `start_step` on.

    All ranks and micro-batches of a step together hold exactly step * global_batch_size + (0 .. global_batch_size - 1),
    where data steps in `skipped` are passed over (see `data_step`).
    It keeps no state: iterating again starts at `start_step` again.
    """

    def __init__(
        self,
        start_step: int,
        global_batch_size: int,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        skipped: Sequence[Sequence[int]] = (),
    ):
        if global_batch_size % (micro_batch_size * world_size):
            raise ConfigError(
                f"global_batch_size={global_batch_size} is not a multiple of {micro_batch_size} samples x "
                f"{world_size} ranks. Set it to one."
            )
        self.start_step, self.skipped, self.global_batch_size = start_step, skipped, global_batch_size
        self.micro_batch_size, self.stride = micro_batch_size, micro_batch_size * world_size
        self.offset = rank * micro_batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for step in count(self.start_step):
            first = data_step(step, self.skipped) * self.global_batch_size
            for micro_batch in range(first, first + self.global_batch_size, self.stride):
                mine = micro_batch + self.offset
                yield list(range(mine, mine + self.micro_batch_size))


class Loader(DataLoader):
    """A DataLoader that gives the errors meant for users as they were raised, without a worker's traceback."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except SdscratchError as error:
            raise type(error)(str(error).strip().rpartition(f"{type(error).__name__}: ")[2]) from None


PR_SET_PDEATHSIG = 1


def stop_with_parent(worker: int) -> None:
    """In a loader's worker: be there for the last steps when the whole process group is told to stop, and no longer.

    A worker holds the connections between ranks open. While it outlives a killed rank, the others wait for that one.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # elsewhere torch finds out within seconds
    for number in (signal.SIGINT, signal.SIGUSR1):  # SLURM may announce a preemption to everyone
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class DataModule(L.LightningDataModule):
    """Shards -> batches for training and validation.

    path: folder of image or latent shards. val_path: one of held-out shards; or holdout: the share of samples of `path`
        held out by their keys. Neither: no validation.
    resolution: pixels of the images (or those that the latents were encoded from).
    global_batch_size: samples per optimizer step over all ranks and accumulated micro-batches.
    num_workers: processes per loader; changes the speed, never a sample.
    random_crop, flip, on_bad: as in ShardDataset, training only for the first two. window: shards shuffled together.
    val_samples: how many held-out samples (all, if there are fewer) make the fixed validation set.
    cache: where byte offsets of read-only folders are kept; see ShardIndex.open.

    To be set before fitting: `start_step` (optimizer steps done before, when resuming), `skipped` (data steps never to be
    read), `collate` (what a batch holds), `scaling_factor` (of the VAE, for latent shards).
    """

    def __init__(
        self,
        path: str,
        resolution: int,
        global_batch_size: int,
        seed: int,
        val_path: str | None = None,
        holdout: float = 0.0,
        num_workers: int = 0,
        random_crop: bool = False,
        flip: bool = False,
        on_bad: OnBad = "fail",
        window: int = 4,
        val_samples: int = 256,
        cache: str | None = None,
    ):
        super().__init__()
        least = {"resolution": 1, "global_batch_size": 1, "num_workers": 0, "window": 1, "val_samples": 1}
        for name, value in zip(least, (resolution, global_batch_size, num_workers, window, val_samples), strict=True):
            check_whole(f"dataset.{name}", value, least[name])
        if val_path is not None and holdout:
            raise ConfigError(f"dataset.val_path={val_path} and dataset.holdout={holdout} exclude each other. Set one.")
        self.path, self.resolution, self.global_batch_size, self.seed = path, resolution, global_batch_size, seed
        self.val_path, self.holdout, self.num_workers = val_path, holdout, num_workers
        self.random_crop, self.flip, self.on_bad = random_crop, flip, on_bad
        self.window, self.val_samples, self.cache = window, val_samples, cache
        self.start_step, self.skipped = 0, list[list[int]]()
        self.collate: Collate = ImageCollate()
        self.scaling_factor = 1.0

    @cached_property
    def indexes(self) -> tuple[ShardIndex, ShardIndex | None]:
        """The training and the held-out samples. Raises DataError when shards are missing, damaged or do not fit."""
        train = self._open(self.path)
        if train.kind == "latents":
            self._check_latents(train)
        if self.val_path is not None:
            return train, self._open(self.val_path)
        return train.split(self.holdout) if self.holdout else (train, None)

    @property
    def kind(self) -> str:
        """ "images" or "latents"."""
        return self.indexes[0].kind

    @property
    def fingerprint(self) -> str:
        """Changes when the training data do; for checkpoints."""
        return self.indexes[0].fingerprint

    def require_vae(self, fingerprint: str) -> None:
        """Raise DataError when the shards hold latents of another VAE than this one."""
        for index in self.indexes:
            if index is not None:
                index.require_vae(fingerprint)

    def about(self) -> dict[str, Any]:
        """What a model that was trained on these data says of them."""
        index = self.indexes[0]
        return {"made_by": index.made_by, "samples": len(index), "fingerprint": index.fingerprint}

    @property
    def micro_batch_size(self) -> int:
        """Samples per rank and forward pass. Raises ConfigError when it is not whole."""
        trainer = self.trainer
        world, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer is not None else (1, 1)
        check_whole("trainer.accumulate_grad_batches", accumulate)
        size, rest = divmod(self.global_batch_size, world * accumulate)
        if rest or size < 1:
            raise ConfigError(
                f"global_batch_size={self.global_batch_size} is not divisible by {world} devices x "
                f"trainer.accumulate_grad_batches={accumulate}. Set it to a multiple of {world * accumulate}."
            )
        return size

    def prepare_data(self) -> None:
        _ = self.indexes  # one process per machine writes the byte offsets, the others then find them

    def setup(self, stage: str | None = None) -> None:
        _ = self.indexes, self.micro_batch_size

    def train_dataset(self) -> ShardDataset:
        """The training samples in their order: position -> sample."""
        index = self.indexes[0]
        order = Order(index.shard_sizes, self.seed, self.window)
        return ShardDataset(
            index, order, self.seed, self.resolution, self.random_crop, self.flip, self.on_bad, self.scaling_factor
        )

    def val_dataset(self) -> ShardDataset | None:
        """The held-out samples, in an order that is the same in every run; cropped at the centre."""
        index = self.indexes[1]
        if index is None:
            return None
        order = Order(index.shard_sizes, VALIDATION_SEED, window=len(index.shards))
        return ShardDataset(
            index, order, VALIDATION_SEED, self.resolution, on_bad=self.on_bad, scaling_factor=self.scaling_factor
        )

    def positions(self, step: int) -> range:
        """Those that optimizer step `step` (from 0) reads, over all ranks and micro-batches."""
        first = data_step(step, self.skipped) * self.global_batch_size
        return range(first, first + self.global_batch_size)

    def keys(self, positions: range) -> list[str]:
        """Names of the samples at positions, as they are ordered; one that stands in for a bad sample is not named."""
        index = self.indexes[0]
        order = Order(index.shard_sizes, self.seed, self.window)
        return [index.key(order.at(position)) for position in positions]

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self._place()
        sampler = PositionSampler(
            self.start_step, self.global_batch_size, self.micro_batch_size, rank, world_size, self.skipped
        )
        return self._loader(self.train_dataset(), sampler, self.collate)

    def val_dataloader(self, whole: bool = False) -> DataLoader | list:
        """Positions 0 .. val_samples - 1, of which each rank takes every world_size-th; or `whole`: all of them."""
        dataset = self.val_dataset()
        if dataset is None:
            return []
        samples, size = min(self.val_samples, len(dataset.index)), self.micro_batch_size
        rank, world_size = (0, 1) if whole else self._place()
        mine = range(rank, samples, world_size)
        batches = [list(mine[first : first + size]) for first in range(0, len(mine), size)]
        return self._loader(dataset, batches, self.collate.for_validation(samples))

    def _open(self, path: str) -> ShardIndex:
        index = ShardIndex.open(Path(path), self.cache)
        encoded = index.made_by.get("resolution", self.resolution)
        if index.kind == "latents" and encoded != self.resolution:
            raise DataError(
                f"{path} holds latents of {encoded} px, but dataset.resolution is {self.resolution}. Encode again with "
                f"`sdscratch data encode`, or set dataset.resolution={encoded}."
            )
        return index

    def _check_latents(self, train: ShardIndex) -> None:
        """Raise ConfigError for what can be drawn from images only, and would be passed over in silence."""
        if self.random_crop:
            raise ConfigError(
                f"dataset.random_crop=true, but {self.path} holds latents, encoded from the centre. Set it to false."
            )
        if self.flip and not train.made_by.get("flips", True):
            raise ConfigError(
                f"dataset.flip=true, but {self.path} holds latents without mirror images. Encode again with "
                "flips=true, or set it to false."
            )

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(
        self, dataset: ShardDataset, batches: PositionSampler | list[list[int]], collate: Collate
    ) -> DataLoader:
        on_cuda = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return Loader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=stop_with_parent,
            pin_memory=on_cuda,
            generator=torch.Generator(),  # else making an iterator would draw from torch's global one
        )

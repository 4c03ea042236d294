"""The loaders of a run: which positions each rank reads, and nothing else that could matter to a result."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from torch.utils.data import DataLoader

from sdscratch.console import warn
from sdscratch.data.batch import VALIDATION_SEED, Collate, ImageCollate, Sample
from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.dataset import HeldOut, OnBad, ShardDataset
from sdscratch.data.images import MAX_SIDE
from sdscratch.data.index import ShardIndex
from sdscratch.data.loading import Loader, PositionSampler, check_temporary_folder, micro_batch_size, stop_with_parent
from sdscratch.data.order import Order, data_step
from sdscratch.errors import ConfigError, DataError, check_whole

MOST_WORKERS = 256
"""Processes of one loader: more than any machine makes use of, and far fewer than bring it down."""


class PositionDataset(Protocol):
    """Positions without end -> samples, and their names."""

    def __getitem__(self, position: int) -> Sample: ...

    def key(self, position: int) -> str: ...


class BaseDataModule(L.LightningDataModule, ABC):
    """Positions -> batches for training and validation, on any number of ranks. What lies at a position, a subclass says.

    To be set before fitting: `start_step` (optimizer steps done before, when resuming), `skipped` (data steps never to be
    read), `collate` (what a batch holds), `scaling_factor` (of the VAE, for latent shards), `text_shape` ((T, D) of the
    captions' states that are to be read from them, if any).
    """

    def __init__(self, resolution: int, global_batch_size: int, seed: int, num_workers: int, val_samples: int) -> None:
        super().__init__()
        check_whole("dataset.resolution", resolution, 1, MAX_SIDE)
        check_whole("dataset.global_batch_size", global_batch_size)
        check_whole("dataset.num_workers", num_workers, 0, MOST_WORKERS)
        if num_workers:
            check_temporary_folder()
        check_whole("dataset.val_samples", val_samples)
        self.resolution, self.global_batch_size, self.seed = resolution, global_batch_size, seed
        self.num_workers, self.val_samples = num_workers, val_samples
        self.start_step, self.skipped = 0, list[list[int]]()
        self.collate: Collate = ImageCollate()
        self.scaling_factor = 1.0
        self.text_shape: tuple[int, int] | None = None

    @property
    def source_weights(self) -> Mapping[str, float]:
        """Of each source that validation losses are told apart by, what it counts in the one over all; none: all is one."""
        return {}

    # What a subclass says

    @abstractmethod
    def prepare_data(self) -> None:
        """Open the shards, which leaves byte offsets beside them. Raises DataError where they are not as they should be."""

    @property
    @abstractmethod
    def kind(self) -> str:
        """ "images" or "latents"."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Changes when the training data do; for checkpoints."""

    @abstractmethod
    def require_vae(self, fingerprint: str) -> None:
        """Raise DataError when the shards hold latents of another VAE than this one."""

    @abstractmethod
    def holds_states_of(self, text_encoder: str) -> bool:
        """Whether all shards hold their captions' states by the text encoder of this fingerprint. Warns of another one's."""

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """What a model that was trained on these data says of them."""

    @abstractmethod
    def captions(self) -> Iterator[str]:
        """All those of the training samples."""

    @abstractmethod
    def train_dataset(self) -> PositionDataset:
        """The training samples in their order."""

    @abstractmethod
    def held_out(self) -> HeldOut | None:
        """The fixed validation set: the same in every run. None where nothing is held out."""

    # What follows from it

    @property
    def micro_batch_size(self) -> int:
        """Samples per rank and forward pass. Raises ConfigError when it is not whole."""
        trainer = self.trainer
        world, accumulate = (trainer.world_size, trainer.accumulate_grad_batches) if trainer is not None else (1, 1)
        return micro_batch_size(self.global_batch_size, world, accumulate)

    def setup(self, stage: str | None = None) -> None:
        self.prepare_data()
        _ = self.micro_batch_size
        self.val_dataloader()  # what it refuses, it refuses now and not at the first validation

    def positions(self, step: int) -> range:
        """Those that optimizer step `step` (from 0) reads, over all ranks and micro-batches."""
        first = data_step(step, self.skipped) * self.global_batch_size
        return range(first, first + self.global_batch_size)

    def keys(self, positions: range) -> list[str]:
        """Names of the samples at positions, as they are ordered; one that stands in for a bad sample is not named."""
        dataset = self.train_dataset()
        return [dataset.key(position) for position in positions]

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self._place()
        sampler = PositionSampler(
            self.start_step, self.global_batch_size, self.micro_batch_size, rank, world_size, self.skipped
        )
        return self._loader(self.train_dataset(), sampler, self.collate)

    def val_dataloader(self, whole: bool = False) -> DataLoader | list:
        """The held-out samples, of which each rank takes every world_size-th; or `whole`: all of them.

        Raises ConfigError where a rank would have none.
        """
        dataset = self.held_out()
        if dataset is None:
            return []
        rank, world_size = (0, 1) if whole else self._place()
        if len(dataset) < world_size:
            raise ConfigError(
                f"{len(dataset)} held-out samples (dataset.val_samples={self.val_samples}) are too few for {world_size} "
                f"ranks, each of which needs one. Set dataset.val_samples to at least {world_size}, and hold out as many."
            )
        mine, size = range(rank, len(dataset), world_size), self.micro_batch_size
        batches = [list(mine[first : first + size]) for first in range(0, len(mine), size)]
        return self._loader(dataset, batches, self.collate.for_validation())

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Positions stay: what is drawn by them is drawn by the host, which would have to wait for the device to say them."""
        return {**super().transfer_batch_to_device(batch, device, dataloader_idx), "positions": batch["positions"]}

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, dataset: Any, batches: PositionSampler | list[list[int]], collate: Collate) -> DataLoader:
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


class DataModule(BaseDataModule):
    """One folder of shards -> batches for training and validation.

    path: folder of image or latent shards. val_path: one of held-out shards; or holdout: the share of samples of `path`
        held out by their keys. Neither: no validation.
    resolution: pixels of the images (or those that the latents were encoded from).
    global_batch_size: samples per optimizer step over all ranks and accumulated micro-batches.
    num_workers: processes per loader; changes the speed, never a sample.
    random_crop, flip, on_bad: as in ShardDataset, training only for the first two. window: shards shuffled together.
    val_samples: how many held-out samples (all, if there are fewer) make the fixed validation set.
    cache: where byte offsets of read-only folders are kept; see ShardIndex.open.
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
        super().__init__(resolution, global_batch_size, seed, num_workers, val_samples)
        check_whole("dataset.window", window)
        if val_path is not None and holdout:
            raise ConfigError(f"dataset.val_path={val_path} and dataset.holdout={holdout} exclude each other. Set one.")
        self.path, self.val_path, self.holdout = path, val_path, holdout
        self.random_crop, self.flip, self.on_bad = random_crop, flip, on_bad
        self.window, self.cache = window, cache
        self.source: str | None = None  # what samples say they are from, instead of what their records say

    @cached_property
    def indexes(self) -> tuple[ShardIndex, ShardIndex | None]:
        """The training and the held-out samples. Raises DataError when shards are missing, damaged or do not fit."""
        train = self._open(self.path)
        if train.kind == "latents":
            self._check_latents(train)
        if self.val_path is not None:
            return train, self._open(self.val_path)
        return train.split(self.holdout) if self.holdout else (train, None)

    def prepare_data(self) -> None:
        _ = self.indexes  # one process per machine writes the byte offsets, the others then find them

    @property
    def kind(self) -> str:
        return self.indexes[0].kind

    @property
    def fingerprint(self) -> str:
        return self.indexes[0].fingerprint

    def require_vae(self, fingerprint: str) -> None:
        for index in self.indexes:
            if index is not None:
                index.require_vae(fingerprint)

    def holds_states_of(self, text_encoder: str) -> bool:
        found = {index.made_by.get("text") for index in self.indexes if index is not None}
        if others := sorted(str(text) for text in found - {text_encoder, None}):
            warn(
                f"{self.path} holds captions' states by another text encoder ({', '.join(others)}) than the one "
                f"configured ({text_encoder}): captions are encoded while training"
            )
        return found == {text_encoder}

    def about(self) -> dict[str, Any]:
        index = self.indexes[0]
        return {"made_by": index.made_by, "samples": len(index), "fingerprint": index.fingerprint}

    def captions(self) -> Iterator[str]:
        index = self.indexes[0]
        for n in range(len(index)):
            members = index.read(n, only=("json", "txt"))
            yield from captions_of(members, record_of(members))

    def train_dataset(self) -> ShardDataset:
        index = self.indexes[0]
        order = Order(index.shard_sizes, self.seed, self.window)
        return self._dataset(index, order, self.seed, random_crop=self.random_crop, flip=self.flip)

    def val_dataset(self) -> ShardDataset | None:
        """All held-out samples, in an order that is the same in every run; cropped at the centre."""
        index = self.indexes[1]
        if index is None:
            return None
        order = Order(index.shard_sizes, VALIDATION_SEED, window=len(index.shards))
        return self._dataset(index, order, VALIDATION_SEED)

    def held_out(self) -> HeldOut | None:
        dataset = self.val_dataset()
        return None if dataset is None else HeldOut([dataset], self.val_samples)

    def _dataset(self, index: ShardIndex, order: Order, seed: int, **how: Any) -> ShardDataset:
        how |= {"on_bad": self.on_bad, "scaling_factor": self.scaling_factor, "text_shape": self.text_shape}
        how["source"] = self.source
        return ShardDataset(index, order, seed, self.resolution, **how)

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

"""Several folders of shards, mixed in exact shares."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from fractions import Fraction
from functools import cached_property
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any

from sdscratch.console import warn
from sdscratch.data.datamodule import BaseDataModule, DataModule
from sdscratch.data.dataset import HeldOut, OnBad
from sdscratch.data.index import ShardIndex
from sdscratch.data.mixture import Mixture, MixtureDataset
from sdscratch.errors import ConfigError, DataError
from sdscratch.randomness import key

NAME = re.compile(r"[\w-]+")
SETTINGS = {"path", "share", "val_path"}


class MixtureDataModule(BaseDataModule):
    """Each global batch holds samples of every source in exact shares (see Mixture), each in an order of its own.

    sources: {name: {path, share, val_path}}: a folder of shards; its share, in any unit; and held-out shards, instead of
        `holdout` of its samples. A source of share 0 is validated, never trained on.
    replay: {share, sources}: the part of every batch, in [0, 1), that older sources get together, against forgetting; each
        group is divided by its own shares. At share 0 they are measured only, those that are there.
    Everything else as in DataModule. The validation set is spread evenly over the sources, whatever their shares; the loss
    over all is that of `sources` in their shares, so that replay and what is forgotten do not blur it.
    """

    def __init__(
        self,
        sources: dict[str, dict[str, Any]],
        resolution: int,
        global_batch_size: int,
        seed: int,
        replay: dict[str, Any] | None = None,
        holdout: float = 0.0,
        num_workers: int = 0,
        random_crop: bool = False,
        flip: bool = False,
        on_bad: OnBad = "fail",
        window: int = 4,
        val_samples: int = 256,
        cache: str | None = None,
    ) -> None:
        super().__init__(resolution, global_batch_size, seed, num_workers, val_samples)
        replay = {"share": 0.0, "sources": None, **(replay or {})}
        older = replay["sources"] or {}
        if len(replay) > 2 or not isinstance(older, dict):
            raise ConfigError(f"dataset.replay is {replay}: expected share, and sources by name")
        self.own = frozenset(sources)  # not replayed
        self.shares = effective_shares(sources, older, replay["share"])
        if not replay["share"]:
            older = {name: settings for name, settings in older.items() if _is_there(name, settings["path"])}
        self.parts: dict[str, DataModule] = {}
        for name, settings in [*sources.items(), *older.items()]:
            val_path = settings.get("val_path")
            with _naming(name):
                self.parts[name] = DataModule(
                    settings["path"],
                    resolution,
                    global_batch_size,
                    key(seed, f"mixture/{name}", 0),  # so that sources of one size differ in their orders
                    val_path=val_path,
                    holdout=0.0 if val_path else holdout,
                    random_crop=random_crop,
                    flip=flip,
                    on_bad=on_bad,
                    window=window,
                    cache=cache,
                )

    def prepare_data(self) -> None:
        _ = self.indexes, self.mixture

    @cached_property
    def indexes(self) -> dict[str, tuple[ShardIndex, ShardIndex | None]]:
        """Of each source, the training and the held-out samples. Raises DataError naming the source that does not fit."""
        found: dict[str, tuple[ShardIndex, ShardIndex | None]] = {}
        for name, part in self.parts.items():
            with _naming(name):
                found[name] = part.indexes
        (first, (reference, _)), *_ = found.items()
        for name, indexes in found.items():
            for index in filter(None, indexes):
                for what, one, other in (
                    ("the kind of its shards", index.kind, reference.kind),
                    ("the VAE of its latents", index.made_by.get("vae"), reference.made_by.get("vae")),
                ):
                    if one != other:
                        raise DataError(
                            f"source {name}: {what} in {index.folder} is {one}, but {other} in {first}. Sources can be "
                            "mixed when all hold images, or latents of one VAE; `sdscratch data encode` makes them."
                        )
        return found

    @property
    def source_weights(self) -> dict[str, float]:
        names = [name for name, (_, val) in self.indexes.items() if val is not None]
        weights = {name: float(self.shares[name]) if name in self.own else 0.0 for name in names}
        if not any(weights.values()):
            weights = dict.fromkeys(names, 1.0)
        return weights if len(names) > 1 else {}

    @property
    def kind(self) -> str:
        return next(iter(self.indexes.values()))[0].kind

    @property
    def fingerprint(self) -> str:
        lines = [f"{name} {self.shares[name]} {index.fingerprint}" for name, index in self._trained_on.items()]
        return sha256("\n".join(lines).encode()).hexdigest()[:16]

    def require_vae(self, fingerprint: str) -> None:
        for name, part in self.parts.items():
            with _naming(name):
                part.require_vae(fingerprint)

    def holds_states_of(self, text_encoder: str) -> bool:
        return all([part.holds_states_of(text_encoder) for part in self.parts.values()])  # each may have to warn

    def about(self) -> dict[str, Any]:
        about = {name: {"share": float(self.shares[name]), **self.parts[name].about()} for name in self._trained_on}
        samples = sum(source["samples"] for source in about.values())
        return {"sources": about, "samples": samples, "fingerprint": self.fingerprint}

    def captions(self) -> Iterator[str]:
        return chain.from_iterable(self.parts[name].captions() for name in self._trained_on)

    @cached_property
    def mixture(self) -> Mixture:
        """Of the sources that are trained on, in their sequence."""
        return Mixture([self.shares[name] for name in self._trained_on], self.global_batch_size, self.seed)

    def train_dataset(self) -> MixtureDataset:
        return MixtureDataset(self.mixture, [self._part(name).train_dataset() for name in self._trained_on])

    def held_out(self) -> HeldOut | None:
        parts = [part for name in self.parts if (part := self._part(name).val_dataset()) is not None]
        return HeldOut(parts, self.val_samples) if parts else None

    @property
    def _trained_on(self) -> dict[str, ShardIndex]:
        return {name: train for name, (train, _) in self.indexes.items() if self.shares[name]}

    def _part(self, name: str) -> DataModule:
        part = self.parts[name]
        part.source, part.scaling_factor, part.text_shape = name, self.scaling_factor, self.text_shape
        return part


def effective_shares(sources: Mapping[str, Any], older: Mapping[str, Any], replay_share: float) -> dict[str, Fraction]:
    """Of each source, the share of all samples: they add up to 1, and are the decimal numbers as they are written.

    Raises ConfigError for what is no share, names no source, or leaves nothing to train on.
    """
    replayed = _number("dataset.replay.share", replay_share)
    if replayed >= 1:
        raise ConfigError(f"dataset.replay.share is {replay_share}: expected a share from 0 to below 1")
    if twice := sources.keys() & older.keys():
        raise ConfigError(
            f"dataset.replay.sources names {', '.join(sorted(twice))}, as does dataset.sources. Leave it out of one of them"
        )
    shares = _shares("dataset.sources", sources, 1 - replayed)
    return shares | (_shares("dataset.replay.sources", older, replayed) if older or replayed else {})


def _shares(setting: str, sources: Mapping[str, Any], together: Fraction) -> dict[str, Fraction]:
    """What each of a group of sources gets, when the group gets `together`."""
    for name, settings in sources.items():
        _check_source(setting, name, settings)
    shares = {name: _number(f"{setting}.{name}.share", sources[name]["share"]) for name in sources}
    if not (total := sum(shares.values())):
        raise ConfigError(f"{setting} gives no source a share: expected {{NAME: {{path: FOLDER, share: 1}}}}")
    return {name: together * share / total for name, share in shares.items()}


def _check_source(setting: str, name: Any, settings: Any) -> None:
    """Raise ConfigError unless this is what a source takes."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise ConfigError(f"{setting} has a source {name!r}: expected a name of letters, digits, _ and -")
    if not isinstance(settings, Mapping) or not {"path", "share"} <= settings.keys() <= SETTINGS:
        raise ConfigError(f"{setting}.{name} is {settings}: expected path, share and, if held out apart, val_path")
    if not isinstance(settings["path"], str) or not isinstance(settings.get("val_path"), str | None):
        raise ConfigError(f"{setting}.{name} is {settings}: expected folders as path and val_path")


def _number(setting: str, value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ConfigError(f"{setting} is {value!r}: expected a number of at least 0")
    return Fraction(str(value))  # 0.1 is a tenth


def _is_there(name: str, path: str) -> bool:
    """Say it of a source whose folder is not."""
    if not (found := Path(path).exists()):
        warn(f"{path} is not there: {name} is not measured")
    return found


@contextmanager
def _naming(source: str) -> Iterator[None]:
    """Say which source an error is about."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"source {source}: {error}") from error

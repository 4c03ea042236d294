"""A folder of shards as an endless sequence: position -> sample, with every draw keyed by the position."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch.utils.data import Dataset

from sdscratch.data import latents, text_states
from sdscratch.data.batch import Sample
from sdscratch.data.captions import captions_of, choose, record_of
from sdscratch.data.images import image_member, preprocess
from sdscratch.data.index import ShardIndex
from sdscratch.data.order import SampleOrder
from sdscratch.errors import ConfigError, DataError
from sdscratch.randomness import noise, uniform

OnBad = Literal["fail", "quarantine"]
MAX_REPLACEMENTS = 16


class ShardDataset(Dataset[Sample]):
    """`dataset[position]` is a pure function of (seed, position): any worker of any rank gives the same bits.

    It has no length, since positions go on from epoch to epoch.

    index: image or latent shards, whole or a part. order: what comes at a position.
    resolution: pixels of the square images; latents come as they were encoded.
    random_crop, flip: draw the crop and the mirroring, else centre and none; latents have a flip if encoded with one.
    on_bad: a sample that cannot be used stops the run ("fail"), or another one, a function of seed and position, takes
        its place and names it in `quarantined` ("quarantine").
    scaling_factor: multiplies latents; the one of the VAE that made them.
    text_shape: (T, D) of the captions' states beside the latents, which then come along; None: they are not read.
    source: what the samples say they are from, instead of what their records say.
    """

    def __init__(
        self,
        index: ShardIndex,
        order: SampleOrder,
        seed: int,
        resolution: int,
        random_crop: bool = False,
        flip: bool = False,
        on_bad: OnBad = "fail",
        scaling_factor: float = 1.0,
        text_shape: tuple[int, int] | None = None,
        source: str | None = None,
    ):
        if on_bad not in ("fail", "quarantine"):
            raise ConfigError(f"on_bad={on_bad!r} is unknown. Expected 'fail' or 'quarantine'.")
        self.index, self.order, self.seed, self.resolution = index, order, seed, resolution
        self.random_crop, self.flip, self.on_bad, self.scaling_factor = random_crop, flip, on_bad, scaling_factor
        self.text_shape, self.source = text_shape, source
        self.members = {suffix for suffix in index.suffixes if suffix != "text.npy" or text_shape}

    def __getitem__(self, position: int) -> Sample:
        return self.load(self.order.at(position), position)

    def key(self, position: int) -> str:
        """The name of the sample at `position`, as it is ordered: its key, after its source if that was given."""
        return self._name(self.order.at(position))

    def load(self, n: int, position: int) -> Sample:
        """Sample number n, with the draws of `position`. Raises DataError naming a sample that cannot be used."""
        bad: list[str] = []
        while True:
            try:
                return self._sample(n, position, bad)
            except DataError as error:
                reason = f"{self.index.where(n)} is a bad sample: {error}."
                if self.on_bad == "fail":
                    raise DataError(
                        f"{reason} Mend it, or set dataset.on_bad=quarantine to replace such samples."
                    ) from error
                bad.append(self._name(n))
                if len(bad) > MAX_REPLACEMENTS:
                    raise DataError(
                        f"{reason} {MAX_REPLACEMENTS} replacements were bad as well; check the data."
                    ) from error
                n = int(uniform(self.seed, f"replacement/{len(bad)}", position) * len(self.index))

    def _sample(self, n: int, position: int, bad: list[str]) -> Sample:
        members = self.index.read(n, only=self.members)
        record = record_of(members)
        captions = captions_of(members, record)
        if not captions:
            raise DataError("it has no caption")
        chosen = choose(captions, self._draw("caption", position))
        sample: Sample = {
            "caption": captions[chosen],
            "key": self.index.key(n),
            "source": self.source or str(record.get("source", "unknown")),
            "position": position,
            "quarantined": bad,
        }
        if self.index.kind == "latents":
            if "latent.npy" not in members:
                raise DataError("it has no latents")
            moments = latents.unpack(members["latent.npy"])
            flip = int(self._draw("flip", position) * len(moments)) if self.flip else 0
            vae_noise = noise(self.seed, "vae", position, moments.shape[2:])
            sample["latents"] = torch.from_numpy(latents.draw(moments, flip, vae_noise.numpy())) * self.scaling_factor
            if self.text_shape:
                if "text.npy" not in members:
                    raise DataError("it has no captions' states")
                state = text_states.state(members["text.npy"], chosen, len(captions), self.text_shape)
                sample["encoder_hidden_states"] = torch.from_numpy(state.copy())
        else:
            crop = (self._draw("crop_x", position), self._draw("crop_y", position)) if self.random_crop else (0.5, 0.5)
            mirror = self.flip and self._draw("flip", position) < 0.5
            sample["image"] = preprocess(image_member(members), self.resolution, crop, mirror)
        return sample

    def _name(self, n: int) -> str:
        return f"{self.source}/{self.index.key(n)}" if self.source else self.index.key(n)

    def _draw(self, purpose: str, position: int) -> float:
        return uniform(self.seed, purpose, position)


class HeldOut(Dataset[Sample]):
    """A fixed validation set of `val_samples` samples, spread evenly over its parts: `held_out[0]` .. `held_out[len - 1]`.

    Of each part it holds the first samples, as many as its even share (at least one, at most all that there are), and what
    is drawn for one of them depends on its place in its part alone: a part is measured in the same way whatever stands
    beside it. The parts take turns.
    """

    def __init__(self, parts: Sequence[ShardDataset], val_samples: int) -> None:
        self.parts = parts
        each, more = divmod(val_samples, len(parts))
        self.counts = [min(max(1, each + (i < more)), len(part.index)) for i, part in enumerate(parts)]
        self.places = [(i, p) for p in range(max(self.counts)) for i, count in enumerate(self.counts) if p < count]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, n: int) -> Sample:
        part, position = self.places[n]
        sample = self.parts[part][position]
        sample["quantile"] = (position + 0.5) / self.counts[part]
        return sample

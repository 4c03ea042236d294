"""What crosses from the data to the training, and how samples become it.

Collating happens in the loader's workers and draws what a training step needs, keyed by each sample's position, so that
no draw depends on which worker, which rank or which micro-batch a sample falls into.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NotRequired, Protocol, TypedDict

import torch
from torch import Tensor

from sdscratch.errors import ConfigError, DataError
from sdscratch.randomness import key, noise, uniform

VALIDATION_SEED = key(0, "validation", 0)  # the same in every run, so that validation losses compare


class Sample(TypedDict):
    """What lies at one position: an image or latents, and one of its captions."""

    image: NotRequired[Tensor]  # (3, H, W) float32 in [-1, 1]
    latents: NotRequired[Tensor]  # (C, h, w) float32, times scaling_factor
    encoder_hidden_states: NotRequired[Tensor]  # (T, D) float16, of the caption
    caption: str
    key: str
    source: str  # of the mixture that it is part of; without one, what its record says
    position: int
    quantile: NotRequired[float]  # held-out samples only: their places in (0, 1), evenly spread
    quarantined: list[str]  # keys of the bad samples that this one stands for; nearly always empty


class ImageBatch(TypedDict):
    """What the autoencoder and CLIP train on."""

    images: Tensor  # (B, 3, H, W) float32 in [-1, 1]
    captions: list[str]
    positions: Tensor  # (B,) int64
    source: list[str]
    keys: list[str]
    quarantined: list[str]


class LatentBatch(TypedDict):
    """What every diffusion phase trains on; `images` and `vae_noise` replace `latents` when the VAE runs on line."""

    latents: NotRequired[Tensor]  # (B, C, h, w) float32, times scaling_factor, so of about unit variance
    images: NotRequired[Tensor]  # (B, 3, H, W) float32 in [-1, 1]
    vae_noise: NotRequired[Tensor]  # (B, C, h, w) standard normal: latents = mean + exp(logvar / 2) * vae_noise
    captions: list[str]  # those dropped are ""
    encoder_hidden_states: NotRequired[
        Tensor
    ]  # (B, T, D) float16, if the shards hold them: of captions before any is dropped
    noise: Tensor  # (B, C, h, w) standard normal float32
    timesteps: Tensor  # (B,), rising with noise
    dropped: Tensor  # (B,) bool
    positions: Tensor  # (B,) int64
    source: list[str]
    quarantined: list[str]


class Collate(Protocol):
    """Samples -> batch, for training; `for_validation` gives the one for held-out samples."""

    def __call__(self, samples: list[Sample]) -> ImageBatch | LatentBatch: ...

    def for_validation(self) -> Collate: ...


class ImageCollate:
    """Images and captions as they are; draws nothing. Raises DataError for latents."""

    def __call__(self, samples: list[Sample]) -> ImageBatch:
        if "image" not in samples[0]:
            raise DataError(
                "the shards hold latents, but this stage trains on images. Set dataset.path to image shards."
            )
        return {
            "images": torch.stack([sample["image"] for sample in samples]),
            "captions": [sample["caption"] for sample in samples],
            "positions": _positions(samples),
            "source": [sample["source"] for sample in samples],
            "keys": [sample["key"] for sample in samples],
            "quarantined": _quarantined(samples),
        }

    def for_validation(self) -> ImageCollate:
        return self


@dataclass(frozen=True)
class LatentCollate:
    """Adds noise, timesteps and caption dropout, each drawn per sample.

    timesteps: maps u (B,) float64, uniform in [0, 1), to timesteps (B,): the inverse distribution function. u is drawn,
        but for samples that bring a quantile.
    validation_timesteps: the map for held-out samples, if it is to be another one.
    caption_dropout: the share of captions replaced by "".
    latent_shape: (C, h, w); needed for image shards only, where the VAE runs on line.
    """

    seed: int
    timesteps: Callable[[Tensor], Tensor]
    caption_dropout: float = 0.0
    latent_shape: tuple[int, int, int] | None = None
    validation_timesteps: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise ConfigError(f"caption_dropout is {self.caption_dropout}: expected a share in [0, 1]")

    def __call__(self, samples: list[Sample]) -> LatentBatch:
        positions = [sample["position"] for sample in samples]
        on_line = "image" in samples[0]
        shape = self.latent_shape if on_line else tuple(samples[0]["latents"].shape)
        if shape is None:
            raise ConfigError("image shards need the latent_shape of the VAE that encodes them; None was given.")
        dropped = [uniform(self.seed, "caption_dropout", p) < self.caption_dropout for p in positions]
        batch: LatentBatch = {
            "captions": ["" if drop else s["caption"] for s, drop in zip(samples, dropped, strict=True)],
            "noise": self._noise("noise", positions, shape),
            "timesteps": self.timesteps(torch.tensor([self._u(sample) for sample in samples], dtype=torch.float64)),
            "dropped": torch.tensor(dropped),
            "positions": _positions(samples),
            "source": [sample["source"] for sample in samples],
            "quarantined": _quarantined(samples),
        }
        if on_line:
            batch["images"] = torch.stack([sample["image"] for sample in samples])
            batch["vae_noise"] = self._noise("vae", positions, shape)
        else:
            batch["latents"] = torch.stack([sample["latents"] for sample in samples])
        if "encoder_hidden_states" in samples[0]:
            batch["encoder_hidden_states"] = torch.stack([sample["encoder_hidden_states"] for sample in samples])
        return batch

    def for_validation(self) -> LatentCollate:
        """The same noise at every validation of every run, no caption dropped."""
        timesteps = self.validation_timesteps or self.timesteps
        return replace(self, seed=VALIDATION_SEED, caption_dropout=0.0, timesteps=timesteps)

    def _u(self, sample: Sample) -> float:
        return sample["quantile"] if "quantile" in sample else uniform(self.seed, "timestep", sample["position"])

    def _noise(self, purpose: str, positions: list[int], shape: tuple[int, ...]) -> Tensor:
        return torch.stack([noise(self.seed, purpose, position, shape) for position in positions])


def _positions(samples: list[Sample]) -> Tensor:
    return torch.tensor([sample["position"] for sample in samples], dtype=torch.int64)


def _quarantined(samples: list[Sample]) -> list[str]:
    return [name for sample in samples for name in sample["quarantined"]]

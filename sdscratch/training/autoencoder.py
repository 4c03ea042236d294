"""Stage 1: a VAE learns to put pictures into few numbers and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from sdscratch.data import ImageBatch, to_pil
from sdscratch.data.grid import CaptionedImages
from sdscratch.devices import send
from sdscratch.errors import ConfigError, check_whole
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models.latent_scale import LatentMoments, with_unit_latents
from sdscratch.randomness import noise
from sdscratch.training import ranks
from sdscratch.training.stage import Augmentation, LrSchedule, MakeOptimizer, Stage

Features = Callable[[Tensor], Sequence[Tensor]]


class Autoencoder(Stage):
    """Reconstruction + kl_weight * KL(posterior || N(0, 1)), both as means over their elements.

    kl_cycle: None, or a number of steps: the weight climbs from 0 to kl_weight during the first half of each so many steps and
    stays there for the second (Fu et al. 2019). free_bits: bits per latent element, averaged over batch and pixels, that a
    channel may differ from N(0, 1) for nothing: only what is above counts (Kingma et al. 2016, appendix C.8).
    reconstruction: "l1", "mse", or "l1+mse". perceptual: a feature network, images (B, 3, H, W) -> feature maps, whose
    squared differences (of unit-length features) count perceptual_weight.
    """

    component = "vae"
    objective_metric = "val/reconstruction"
    network: AutoencoderKL

    def __init__(
        self,
        network: AutoencoderKL,
        kl_weight: float,
        reconstruction: Literal["l1", "mse", "l1+mse"] = "l1",
        perceptual: Features | None = None,
        perceptual_weight: float = 0.0,
        seed: int = 0,
        kl_cycle: int | None = None,
        free_bits: float = 0.0,
        *,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        global_batch_size: int = 1,
        channels_last: bool = False,
        augment: Augmentation | None = None,
    ) -> None:
        super().__init__(
            network, optimizer, lr_schedule, ema_decay, max_grad_norm, global_batch_size, channels_last, augment
        )
        if kl_cycle is not None:
            check_whole("stage.kl_cycle", kl_cycle, 2)
        if not 0 <= free_bits < math.inf:
            raise ConfigError(f"stage.free_bits is {free_bits}: expected bits per latent element, 0 or more")
        self.kl_weight, self.reconstruction, self.seed = kl_weight, reconstruction, seed
        self.kl_cycle, self.free_bits = kl_cycle, free_bits
        self.perceptual, self.perceptual_weight = [perceptual], perceptual_weight  # in a list: not trained, not saved

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if isinstance(self.perceptual[0], nn.Module):
            self.perceptual[0].to(self.device).eval().requires_grad_(False)

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Of one batch; the posterior's noise is keyed by each sample's position."""
        images = batch["images"]
        posterior = self.network.encode(images).latent_dist
        shape, positions = tuple(posterior.mean.shape[1:]), batch["positions"].tolist()
        draws = torch.stack([noise(self.seed, "posterior", position, shape) for position in positions])
        latents = posterior.mean + posterior.std * send(draws, images.device)
        reconstructed = self.network.decode(latents).sample
        losses = {
            "reconstruction": self._distance(reconstructed, images),
            "kl": posterior.kl().mean() / latents[0].numel(),
        }
        counted = kl_above(self.free_bits, posterior) if self.free_bits else losses["kl"]
        weight = self.kl_weight_at(self.global_step)
        losses["loss"] = losses["reconstruction"] + weight * counted
        if self.kl_cycle is not None:
            losses["kl_weight"] = images.new_full((), weight)
        if self.perceptual[0] is not None:
            losses["perceptual"] = _feature_distance(self.perceptual[0], reconstructed, images)
            losses["loss"] = losses["loss"] + self.perceptual_weight * losses["perceptual"]
        return losses

    def kl_weight_at(self, step: int) -> float:
        """What the KL counts in optimizer step number `step` (from 0)."""
        if self.kl_cycle is None:
            return self.kl_weight
        return self.kl_weight * min(1.0, 2 * (step % self.kl_cycle) / self.kl_cycle)

    @torch.no_grad()
    def evaluate(self, network: Any, batches: Iterable[ImageBatch]) -> dict[str, float]:
        """Of the posterior's mean: reconstruction loss, of each source and, weighted as `source_weights` says, overall; PSNR in
        dB; mean KL and standard deviation of the latents."""
        sums = torch.zeros(4, dtype=torch.float64)
        names, weights = (
            list(self.source_weights),
            torch.tensor(list(self.source_weights.values()), dtype=torch.float64),
        )
        of_sources = torch.zeros(len(names), 2, dtype=torch.float64)  # sum and number
        moments = LatentMoments(network.config.latent_channels)
        for batch in batches:
            images = batch["images"]
            posterior = network.encode(images).latent_dist
            reconstructed = network.decode(posterior.mean).sample.clamp(-1, 1)
            sums += len(images) * torch.tensor(
                [
                    1.0,
                    self._distance(reconstructed, images),
                    F.mse_loss(reconstructed, images),
                    posterior.kl().mean() / posterior.mean[0].numel(),
                ],
                dtype=torch.float64,
            )
            moments.add(posterior)
            for i, name in enumerate(batch["source"] if names else ()):
                one = torch.tensor([self._distance(reconstructed[i], images[i]), 1.0], dtype=torch.float64)
                of_sources[names.index(name)] += one
        sums, of_sources = self.add_over_ranks(sums), self.add_over_ranks(of_sources)
        moments.totals = self.add_over_ranks(moments.totals)
        _, distance, error, kl = (sums / sums[0]).tolist()
        means = of_sources[:, 0] / of_sources[:, 1]
        if names:
            distance = float((weights * means).sum() / weights.sum())
        return {
            "val/reconstruction": distance,
            "val/psnr": float(10 * torch.log10(torch.tensor(4 / max(error, 1e-12)))),
            "val/kl": kl,
            "val/latent_std": moments.std,
            **{f"val/reconstruction/{name}": mean for name, mean in zip(names, means.tolist(), strict=True)},
        }

    def validation_loss(self, measures: Mapping[str, float]) -> float:
        return measures["val/reconstruction"]

    @torch.no_grad()
    def preview(self, network: Any, batches: Iterable[ImageBatch]) -> CaptionedImages | None:
        """Pairs: the picture, and what is left of it."""
        if not ranks.is_first():
            return None
        batch = next(iter(batches))
        images = batch["images"][:8]
        reconstructed = network.decode(network.encode(images).latent_dist.mean).sample
        pairs = [picture for pair in zip(images, reconstructed, strict=True) for picture in pair]
        names = [name for key in batch["keys"][:8] for name in (f"input {key}", "reconstruction")]
        return CaptionedImages([to_pil(picture) for picture in pairs], names, columns=8)

    @torch.no_grad()
    def save(self, network: Any, folder: Path, batches: Iterable[ImageBatch], about: Mapping[str, Any]) -> None:
        """A model folder with a `vae/` alone, its latents of mean 0 and, times scaling_factor, of standard deviation 1."""
        moments = LatentMoments(network.config.latent_channels)
        for batch in batches:
            moments.add(network.encode(batch["images"]).latent_dist)
        save_model_folder(
            folder, vae=with_unit_latents(network, moments), about={"latents": moments.as_dict(), **about}
        )

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        terms = {"l1": F.l1_loss, "mse": F.mse_loss}
        return torch.stack([terms[name](a, b) for name in self.reconstruction.split("+")]).sum()


def kl_above(free_bits: float, posterior: Any) -> Tensor:
    """Mean over channels of how far each one's mean KL per element, of diffusers' posterior, is above free_bits; in nats."""
    mean, logvar = posterior.mean, posterior.logvar
    per_channel = (mean.square() + logvar.exp() - 1 - logvar).mean(dim=(0, 2, 3)) / 2
    return F.relu(per_channel - free_bits * math.log(2)).mean()


def _feature_distance(features: Features, a: Tensor, b: Tensor) -> Tensor:
    pairs = zip(features(a), features(b), strict=True)
    return torch.stack([(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean() for x, y in pairs]).sum()

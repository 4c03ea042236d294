"""The tables about the parts of a model: the UNet's held-out loss, the VAE's reconstructions, the CLIP's retrieval."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from sdscratch.data import LatentBatch, to_pil
from sdscratch.data.images import to_tensor
from sdscratch.diffusion import Objective
from sdscratch.errors import ConfigError
from sdscratch.evaluation.bootstrap import SHARE, Estimate, estimate, mean
from sdscratch.evaluation.clip_network import ClipNetwork
from sdscratch.evaluation.distribution import LEAST, fid_estimate
from sdscratch.evaluation.features import FeatureNetwork
from sdscratch.evaluation.real_pictures import RealPictures
from sdscratch.evaluation.results import ALL, Row, Table
from sdscratch.models.encoders import FrozenEncoders, downsampling_factor

BINS = 10  # of timesteps
KERNEL = 11  # pixels of SSIM's window

Progress = Callable[[int, int], None]


@torch.no_grad()
def loss_table(
    unet: nn.Module,
    objective: Objective,
    encoders: FrozenEncoders,
    batches: Iterable[LatentBatch],
    protocol: Mapping[str, Any],
    replicates: int,
) -> Table:
    """Unweighted loss on held-out batches with their fixed noise and timesteps: overall, by timestep, and by source."""
    losses, timesteps, sources = list[Tensor](), list[Tensor](), list[str]()
    for batch in batches:
        states = encoders.text(batch["captions"])
        latents = batch.get("latents")
        if latents is None:
            latents = encoders.encode_images(batch["images"], batch["vae_noise"])
        found = objective(unet, latents, batch["noise"], batch["timesteps"], states).unweighted
        losses.append(found.double().cpu())
        timesteps.append(batch["timesteps"].double().cpu())
        sources += batch["source"]
    loss, times = torch.cat(losses), torch.cat(timesteps)
    edges = [i * objective.num_train_timesteps // BINS for i in range(BINS + 1)]
    edges[-1] += 1  # flow matching has a time of 1000
    groups = {f"timesteps {low}-{high - 1}": (times >= low) & (times < high) for low, high in pairwise(edges)}
    if len(names := sorted(set(sources))) > 1:
        groups |= {f"source {name}": torch.tensor([source == name for source in sources]) for name in names}
    rows = [Row.of("loss", estimate(mean, loss, replicates=replicates))]
    rows += [
        Row.of("loss", estimate(mean, loss[chosen], replicates=replicates), name)
        for name, chosen in groups.items()
        if chosen.any()
    ]
    note = (
        "Of every held-out sample, at the noise and the timestep that training validates with; each counts alike. It compares "
        "between models of the same objective, VAE and data."
    )
    return Table("Held-out loss of the UNet", {**protocol, "N": len(loss)}, rows, note)


@torch.no_grad()
def autoencoder_table(
    vae: AutoencoderKL,
    real: RealPictures,
    network: FeatureNetwork,
    protocol: Mapping[str, Any],
    replicates: int,
    batch_size: int,
    progress: Progress,
) -> Table:
    """What is left of real pictures in [-1, 1] after encoding (the posterior's mean) and decoding.

    Raises ConfigError for pictures that the VAE, or SSIM's window, cannot take.
    """
    if real.size is None or real.size < KERNEL or real.size % downsampling_factor(vae):
        raise ConfigError(
            f"size={real.size} does not suit the VAE's measures: expected a multiple of {downsampling_factor(vae)}, of at "
            f"least {KERNEL}"
        )
    psnr, ssim, before, after = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for first in range(0, len(real), batch_size):
        numbers = range(first, min(first + batch_size, len(real)))
        pictures = [real.picture(i) for i in numbers]
        images = torch.stack([to_tensor(picture) for picture in pictures])
        decoded = vae.decode(vae.encode(images.to(vae.device)).latent_dist.mean).sample.clamp(-1, 1).float().cpu()
        psnr.append(peak_signal_noise_ratio(decoded, images, data_range=(-1.0, 1.0), reduction="none", dim=(1, 2, 3)))
        likeness = structural_similarity_index_measure(decoded, images, data_range=(-1.0, 1.0), reduction="none")
        ssim.append(cast(Tensor, likeness))
        before.append(network.features(pictures))
        after.append(network.features([to_pil(image) for image in decoded]))
        progress(numbers.stop, len(real))
    originals, remains = torch.cat(before), torch.cat(after)
    each = {
        "PSNR in dB": torch.cat(psnr),
        "SSIM": torch.cat(ssim).view(-1),
        "distance of features": 1 - F.cosine_similarity(originals, remains, dim=1),
    }
    rows = [Row.of(name, estimate(mean, values, replicates=replicates)) for name, values in each.items()]
    if len(real) >= LEAST:
        rows.append(Row.of("FID of reconstructions", fid_estimate(originals, remains, replicates, paired=True)))
    note = "PSNR and SSIM are means over pictures; the distance of features is 1 - their cosine, lower is more alike."
    return Table("Reconstructions of the VAE", {**protocol, "N": len(real)}, rows, note)


def retrieval_table(
    clip: ClipNetwork,
    images: Tensor,
    captions: list[str],
    protocol: Mapping[str, Any],
    replicates: int,
) -> Table:
    """R@1 and R@5 among all pairs, both ways: how often the picture's own caption, or one equal to it, is among the nearest.

    images: vectors (N, D) of the pictures that `captions` belong to.
    """
    _, number = clip.text.tokens(captions).unique(dim=0, return_inverse=True)
    similarity = F.normalize(images, dim=1) @ F.normalize(clip.captions(captions), dim=1).T
    same = number[:, None] == number[None, :]
    rows = []
    for way, scores, equal in (("picture to caption", similarity, same), ("caption to picture", similarity.T, same.T)):
        for nearest in (1, 5):
            found = scores.topk(min(nearest, len(captions)), dim=1).indices
            hits = equal.gather(1, found).any(dim=1)
            rows.append(Row.of(f"R@{nearest}", estimate(mean, hits, replicates=replicates, within=SHARE), way))
    chance = Estimate(float(same.double().mean()), None, None, len(captions))
    rows.append(Row.of("R@1 by chance", chance, ALL))
    return Table("Retrieval by CLIP", {**protocol, "N": len(captions)}, rows, "Shares in [0, 1].")

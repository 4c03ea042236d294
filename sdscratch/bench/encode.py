"""Pictures to latents: in batches, as `sdscratch data encode` takes them, beside diffusers' VAE one picture after the other."""

from __future__ import annotations

from copy import deepcopy

import torch

from sdscratch.bench.report import Fact, Findings
from sdscratch.bench.setting import Setting
from sdscratch.bench.timing import Comparison, race
from sdscratch.models import new_vae
from sdscratch.prepare.encode.encoder import Encoder

OURS, PEER = "sdscratch, in batches", "diffusers, one by one"
PICTURES = "pictures encoded per second"
WIDTHS = {"cpu": (32, 64, 128, 128), "cuda": (128, 256, 512, 512)}
"""Of the VAE: Stable Diffusion's on a GPU."""


def bench_encode(setting: Setting) -> Findings:
    """Random pictures and weights; mean and log-variance come back to the CPU either way."""
    torch.manual_seed(0)
    vae = new_vae(
        block_out_channels=WIDTHS[setting.device.type],
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=8 * setting.latent_size,
    )
    vae.eval().requires_grad_(False).to(setting.device)
    side = 8 * setting.latent_size
    pictures = torch.rand(setting.batch_size, 3, side, side) * 2 - 1
    ours = deepcopy(vae).to(memory_format=torch.channels_last)
    encoder = Encoder(ours, None, "bfloat16" if setting.precision == "bf16-mixed" else "float32")
    if setting.compile != "no":
        encoder = encoder.compiled(setting.batch_size)

    @torch.no_grad()
    def theirs() -> None:
        for picture in pictures.to(setting.device):
            with setting.autocast():
                vae.encode(picture[None]).latent_dist.parameters.float().cpu()

    contenders = {OURS: lambda: encoder.moments(pictures), PEER: theirs}
    laps = race(contenders, setting.rounds, setting.device, PEER, setting.until)
    compared = Comparison.of("encoding", laps, OURS, PEER)
    return Findings([compared], [Fact(PICTURES, setting.batch_size / laps.of(OURS), "")])

"""Seconds of one training step of the quickstart's UNet, in a bare loop: forward, backward, clipping, AdamW, average.

GOMP_SPINCOUNT=10000 python experiments/2026-11-21-quickstart/step_time.py THREADS
"""

import sys
import time

import torch

from sdscratch.config import build, compose

STEPS, BATCH = 40, 16

torch.set_num_threads(int(sys.argv[1]))
unet = build(compose("train", ["experiment=shapes_diffusion"]).model)
parameters = list(unet.parameters())
average = [parameter.detach().clone() for parameter in parameters]
optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
latents, timesteps, states = torch.randn(BATCH, 8, 8, 8), 1000 * torch.rand(BATCH), torch.randn(BATCH, 20, 96)


def step() -> None:
    (unet(latents, timesteps, states) - latents).square().mean().backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 0.01)
    optimizer.zero_grad()


for _ in range(5):
    step()
start = time.perf_counter()
for _ in range(STEPS):
    step()
print(f"{(time.perf_counter() - start) / STEPS:.3f} s")

"""What the judge reads back from a quickstart's pictures: held-out ones after encoding and decoding, and drawn ones.

python experiments/2026-11-21-quickstart/judge.py runs/quickstart
"""

import sys

import torch

from sdscratch import TextToImage
from sdscratch.data import to_pil
from sdscratch.data.images import preprocess
from sdscratch.data.shapes import draw, prompts
from sdscratch.evaluation.shapes_judge import score

pipe = TextToImage.from_pretrained(sys.argv[1], device="cpu")
vae = pipe.encoders.vae
_, scenes = zip(*prompts("val", 512, seed=0), strict=True)
with torch.no_grad():
    pictures = torch.stack([preprocess(draw(scene, 32), 32) for scene in scenes])
    decoded = vae.decode(vae.encode(pictures).latent_dist.mean).sample
print(f"reconstructions right: {score([to_pil(picture) for picture in decoded], scenes)['all']:.3f}")

for chosen in ({}, {"num_inference_steps": 20}, {"guidance_scale": 3.0}, {"guidance_scale": 1.5}):
    said = []
    for split in ("val", "unseen"):
        texts, scenes = zip(*prompts(split, 256, seed=0), strict=True)
        said.append(f"{split} {score(pipe(texts, seed=0, batch_size=128, **chosen), scenes)['all']:.3f}")
    print(chosen or "as in the run", *said)

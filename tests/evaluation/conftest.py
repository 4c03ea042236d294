"""A CLIP that has learnt eight pictures and their captions by heart."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sdscratch.data.images import to_tensor
from sdscratch.data.shapes import SEEN, Scene, draw
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models.encoders import new_clip


class LearntClip(NamedTuple):
    """folder: a model folder with text_encoder/, tokenizer/ and clip/; it knows which caption belongs to which picture."""

    folder: Path
    pictures: list[Image.Image]
    captions: list[str]


@pytest.fixture(scope="session")
def learnt_clip(tmp_path_factory: pytest.TempPathFactory) -> LearntClip:
    pairs = SEEN[::4]  # every colour, and every shape
    pictures = [draw(Scene(colour, shape, "centre", "white"), 32) for colour, shape in pairs]
    texts = [f"a {colour} {shape}" for colour, shape in pairs]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text = new_clip(texts, vocab_size=640, max_length=24, **sizes)
    images, tokens = torch.stack([to_tensor(picture) for picture in pictures]), text.tokens(texts)
    optimizer = torch.optim.AdamW(text.clip.parameters(), lr=2e-3)
    for _ in range(60):
        a = F.normalize(text.clip.get_image_features(pixel_values=images).pooler_output, dim=1)
        b = F.normalize(text.clip.get_text_features(input_ids=tokens).pooler_output, dim=1)
        logits, own = 10 * a @ b.T, torch.arange(len(texts))
        optimizer.zero_grad()
        (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)).backward()
        optimizer.step()
    folder = tmp_path_factory.mktemp("clip") / "model"
    save_model_folder(folder, text=text, about={})
    return LearntClip(folder, pictures, texts)

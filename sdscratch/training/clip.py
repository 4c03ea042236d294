"""Stage 2: a text tower and an image tower learn to agree on which caption belongs to which picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPModel

from sdscratch.data import ImageBatch, to_pil
from sdscratch.data.grid import CaptionedImages
from sdscratch.devices import send
from sdscratch.errors import ConfigError
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models.encoders import TextEncoder
from sdscratch.training import ranks
from sdscratch.training.stage import Augmentation, LrSchedule, MakeOptimizer, Stage

MAX_LOGIT_SCALE = math.log(100.0)  # as in CLIP: a colder temperature only makes training unstable


class Clip(Stage):
    """Symmetric contrastive learning (Radford et al. 2021), with the other ranks' pairs as negatives too.

    Captions that are equal token for token are no negatives of one another: the target is shared among them, so that data
    with class captions train as well.
    """

    component = "clip"
    objective_metric = "1 - val/r_at_1"
    network: CLIPModel

    def __init__(
        self,
        text: TextEncoder,
        *,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        global_batch_size: int = 1,
        channels_last: bool = False,
        augment: Augmentation | None = None,
    ) -> None:
        if text.clip is None:
            raise ConfigError("the text encoder has no image tower, but the CLIP stage trains both. Choose a new one.")
        vision = text.clip.config.vision_config
        if vision.image_size % vision.patch_size:
            raise ConfigError(
                f"text_encoder.patch_size={vision.patch_size} does not divide the {vision.image_size} pixels of a picture"
            )
        super().__init__(
            text.clip, optimizer, lr_schedule, ema_decay, max_grad_norm, global_batch_size, channels_last, augment
        )
        self.text = text

    def losses(self, batch: ImageBatch) -> dict[str, Tensor]:
        """Mean of the two cross-entropies, picture to caption and caption to picture."""
        tokens = send(self.text.tokens(batch["captions"]), self.device)
        images, texts = _embed(self.network, batch["images"], tokens)
        if self.trainer.world_size > 1:
            images, texts = (self.all_gather(x, sync_grads=True).flatten(0, 1) for x in (images, texts))
            tokens = self.all_gather(tokens).flatten(0, 1)
        logits = images @ texts.T * self.network.logit_scale.exp()
        same = (tokens[:, None] == tokens[None, :]).all(-1).float()
        target = same / same.sum(1, keepdim=True)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        return {"loss": loss, "temperature": 1 / self.network.logit_scale.detach().exp()}

    @torch.no_grad()
    def constrain(self) -> None:
        self.network.logit_scale.clamp_(max=MAX_LOGIT_SCALE)

    @torch.no_grad()
    def evaluate(self, network: Any, batches: Iterable[ImageBatch]) -> dict[str, float]:
        """Recall at 1 among all held-out pairs: how often the nearest caption of a picture is its own, or equals it."""
        images, (tokens, texts), _ = self._embed_all(network, batches)
        images, texts, tokens = (ranks.join_rows(rows.to(self.device)).cpu() for rows in (images, texts, tokens))
        same = (tokens[:, None] == tokens[None, :]).all(-1)
        similarity = images @ texts.T
        rows = torch.arange(len(images))
        to_text = same[rows, similarity.argmax(1)].double().mean()
        to_image = same[similarity.argmax(0), rows].double().mean()
        return {
            "val/r_at_1": float(to_text + to_image) / 2,
            "val/r_at_1_image_to_text": float(to_text),
            "val/r_at_1_text_to_image": float(to_image),
            "val/r_at_1_chance": float(same.double().mean()),
        }

    def validation_loss(self, measures: Mapping[str, float]) -> float:
        return 1 - measures["val/r_at_1"]

    @torch.no_grad()
    def preview(self, network: Any, batches: Iterable[ImageBatch]) -> CaptionedImages | None:
        """Held-out pictures, each with the caption that the model finds nearest, among all of them."""
        if not ranks.is_first():
            return None
        images, tokens, batch_list = self._embed_all(network, batches)
        captions = [caption for batch in batch_list for caption in batch["captions"]]
        pictures = torch.cat([batch["images"] for batch in batch_list])[:16]
        nearest = (images[:16] @ tokens[1].T).argmax(1).tolist()
        found = [captions[i] + ("" if captions[i] == captions[row] else " (wrong)") for row, i in enumerate(nearest)]
        return CaptionedImages([to_pil(picture) for picture in pictures], found, columns=8)

    def save(self, network: Any, folder: Path, batches: Iterable[ImageBatch], about: Mapping[str, Any]) -> None:
        """A model folder with `text_encoder/`, `tokenizer/` and, for retrieval and scores, the whole `clip/`."""
        text = TextEncoder(network.text_model, self.text.tokenizer, network)
        save_model_folder(folder, text=text, about=about)

    def _embed_all(
        self, network: CLIPModel, batches: Iterable[ImageBatch]
    ) -> tuple[Tensor, tuple[Tensor, Tensor], list]:
        batch_list = list(batches)
        tokens = [self.text.tokens(batch["captions"]) for batch in batch_list]
        pairs = [_embed(network, b["images"], t.to(self.device)) for b, t in zip(batch_list, tokens, strict=True)]
        images, texts = (torch.cat(part).float().cpu() for part in zip(*pairs, strict=True))
        return images, (torch.cat(tokens), texts), batch_list


def _embed(clip: CLIPModel, images: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, D) of pictures and captions."""
    of_images = clip.get_image_features(pixel_values=images).pooler_output
    of_texts = clip.get_text_features(input_ids=tokens).pooler_output
    return F.normalize(of_images.float(), dim=-1), F.normalize(of_texts.float(), dim=-1)

"""A CLIP that looks at pictures and captions: our own CLIP stage, or any CLIP folder of transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel
from transformers.utils import cached_file

from sdscratch.data.images import preprocess
from sdscratch.errors import DataError
from sdscratch.models.encoders import TextEncoder, fingerprint
from sdscratch.models.pretrained import load_pretrained
from sdscratch.models.tokenizer import read_tokenizer

PREPROCESSING = "preprocessor_config.json"
HALF = [0.5, 0.5, 0.5]  # mean and deviation of pixels in [0, 1] that make [-1, 1], as our own CLIP stage sees them


class ClipNetwork:
    """Pictures and captions -> vectors.

    path: a run or model folder of the CLIP stage, a quickstart's run, a CLIP folder of transformers, or its hub id in the
        local cache. Raises DataError where there is none, or it is damaged.
    """

    kind = "clip"

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        clip, tokenizer = _parts(Path(path))
        network = load_pretrained(CLIPModel, clip, "CLIP").eval().requires_grad_(False)
        self.text = TextEncoder(network.text_model, read_tokenizer(tokenizer), network)
        if len(self.text.tokenizer) > network.config.text_config.vocab_size:
            raise DataError(f"{path}: its tokenizer knows more tokens than its CLIP: they are not of one model")
        self.clip = network
        self.size = int(network.config.vision_config.image_size)
        self.mean, self.std = _normalisation(clip)
        self.fingerprint = fingerprint(network)

    def to(self, device: torch.device | str) -> ClipNetwork:
        """Move it, in place."""
        self.clip.to(device)
        return self

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Projected image vectors (B, D), not normalised, on the CPU."""
        pixels = torch.stack([preprocess(picture, self.size) for picture in pictures]) / 2 + 0.5
        pixels = (pixels - self.mean) / self.std
        return self.clip.get_image_features(pixel_values=pixels.to(self.clip.device)).pooler_output.float().cpu()

    @torch.no_grad()
    def captions(self, captions: Sequence[str]) -> Tensor:
        """Projected text vectors (B, D), not normalised, on the CPU."""
        tokens = self.text.tokens(captions).to(self.clip.device)
        return self.clip.get_text_features(input_ids=tokens).pooler_output.float().cpu()

    def class_logits(self, features: Tensor) -> None:
        """It has no classes."""
        return None


def has_clip(path: Path) -> bool:
    """Whether a run or model folder of ours comes with a whole CLIP."""
    return any((folder / "clip").is_dir() for folder in _ours(path))


def _ours(path: Path) -> list[Path]:
    """Where our own model folders with a CLIP are: this one, a run's, or that of a quickstart's CLIP stage."""
    return [path, path / "model", path / "clip" / "model"]


def _parts(path: Path) -> tuple[Path | str, Path | str]:
    """Where the networks are, and where the tokenizer."""
    for folder in _ours(path):
        if (folder / "clip" / "config.json").is_file():
            return folder / "clip", folder / "tokenizer"
    if path.is_dir() and not (path / "config.json").is_file():
        raise DataError(
            f"{path} holds no CLIP: expected a run or model folder of stage=clip, or a CLIP folder of transformers. Name "
            "one by clip="
        )
    return str(path), str(path)


def _normalisation(clip: Path | str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of pixels in [0, 1], (3, 1, 1) each, as the folder says."""
    try:
        about = cached_file(clip, PREPROCESSING, local_files_only=True, _raise_exceptions_for_missing_entries=False)
        said = {} if about is None else json.loads(Path(about).read_text())
        mean, std = (torch.tensor(said.get(name, HALF)).view(3, 1, 1) for name in ("image_mean", "image_std"))
        return mean, std
    except (OSError, ValueError, AttributeError, TypeError, RuntimeError) as error:
        raise DataError(f"{clip}: its {PREPROCESSING} is no description of pictures ({error}). Restore it") from error

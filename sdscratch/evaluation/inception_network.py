"""The Inception network that published FIDs are measured with, from a weights file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sdscratch.errors import ConfigError, DataError
from sdscratch.models.encoders import fingerprint

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"


class InceptionNetwork:
    """Pictures -> 2048 features, and 1008 classes; torch-fidelity's network, with its resampling to 299 pixels.

    path: its weights file, pt_inception-2015-12-05-6726825d.pth of the releases of torch-fidelity on GitHub.
    Raises ConfigError where torch-fidelity is not installed, DataError where the file is missing or damaged.
    """

    kind = "inception"

    def __init__(self, path: str) -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ConfigError(
                f"features=inception needs {error.name}, which is not installed: pip install 'sdscratch[eval]'"
            ) from error
        self.path = path
        if not Path(path).is_file():
            raise DataError(f"there are no Inception weights {path}: expected the file {WEIGHTS}")
        try:
            torch.load(path, map_location="cpu", weights_only=True)  # what this takes is no program, for the next line
            self.network = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=path)
        except Exception as error:  # damaged files raise nearly anything
            reason = " ".join(str(error).split())[:200]
            raise DataError(f"{path} holds no Inception weights: expected {WEIGHTS} ({reason})") from error
        self.fingerprint = fingerprint(self.network)

    def to(self, device: torch.device | str) -> InceptionNetwork:
        """Move it, in place."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """Of the last pooling, (B, 2048), on the CPU."""
        pixels = torch.stack([torch.from_numpy(np.array(picture.convert("RGB"))) for picture in pictures])
        return self.network(pixels.permute(0, 3, 1, 2).to(self.network.fc.weight.device))[0].float().cpu()

    def class_logits(self, features: Tensor) -> Tensor:
        """(B, 1008), without the bias, which is what the Inception score is defined on."""
        return features @ self.network.fc.weight.detach().float().cpu().T

"""Which network a `unet/config.json` describes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdscratch.models.released_unet import ReleasedUNet
from sdscratch.models.unet import UNet

AnyUNet = UNet | ReleasedUNet


def unet_from_config(config: Mapping[str, Any], gradient_checkpointing: bool = False) -> AnyUNet:
    """By its `_class_name`: `ReleasedUNet`, which we alone read, else what diffusers would build.

    Raises ConfigError that names every key asking for what these networks do not have.
    """
    kind: type[AnyUNet] = ReleasedUNet if config.get("_class_name") == ReleasedUNet.__name__ else UNet
    return kind.from_config(config, gradient_checkpointing)

"""The weights as training left them, which a run's checkpoints hold and its model folder does not."""

from __future__ import annotations

from sdscratch.errors import ConfigError
from sdscratch.models.unet_kinds import AnyUNet, unet_from_config
from sdscratch.run_folder import RunFolder

PREFIX = "network."  # of the trained network in a checkpoint's state dict


def raw_weights(unet: AnyUNet, run: RunFolder) -> AnyUNet:
    """A network like `unet`, of the newest intact checkpoint, in eval mode. Raises ConfigError where there is none."""
    checkpoint = run.newest_intact_checkpoint()
    if checkpoint is None:
        raise ConfigError("weights=raw needs a run with checkpoints; a model folder holds the ema weights only")
    state = checkpoint.load()["state_dict"]
    raw = unet_from_config(unet.config).eval()
    raw.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in state.items()}, strict=True)
    return raw

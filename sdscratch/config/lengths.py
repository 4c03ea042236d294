"""How long a run is, where a configuration describes it in epochs: ${steps:SAMPLES,EPOCHS,GLOBAL_BATCH_SIZE}."""

from __future__ import annotations

import math

from omegaconf import OmegaConf

from sdscratch.errors import ConfigError, check_whole


def steps(samples: int, epochs: float, global_batch_size: int) -> int:
    """Optimizer steps, the fewest that see every one of `samples` samples `epochs` times on average.

    Raises ConfigError unless all three are numbers above 0.
    """
    check_whole("length.samples", samples)
    check_whole("global_batch_size", global_batch_size)
    if isinstance(epochs, bool) or not isinstance(epochs, int | float) or not 0 < epochs < math.inf:
        raise ConfigError(f"length.epochs is {epochs!r}: expected a number above 0")
    return math.ceil(samples * epochs / global_batch_size)


OmegaConf.register_new_resolver("steps", steps, replace=True)

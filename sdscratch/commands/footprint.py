"""How much a run will lay down, before anything of it is built."""

from __future__ import annotations

from math import ceil
from typing import Any, NamedTuple

from omegaconf import DictConfig

from sdscratch.config import build


class Footprint(NamedTuple):
    """checkpoint, snapshots: bytes of one, and of all that are taken of further averages. kept: checkpoints at most."""

    checkpoint: int
    kept: int
    snapshots: int

    @property
    def total(self) -> int:
        return self.checkpoint * self.kept + self.snapshots


def footprint(cfg: DictConfig) -> Footprint:
    """Of a run of this configuration."""
    from sdscratch.doctor.disk import checkpoint_size, float32_size

    trained, tracked = network(cfg), (cfg.get("callbacks") or {}).get("posthoc_ema")
    averages = len(tracked.lengths) * float32_size(trained) if tracked else 0
    snapshots = averages * ceil(cfg.max_steps / tracked.every) if tracked else 0
    return Footprint(checkpoint_size(trained) + averages, checkpoints(cfg), snapshots)


def network(cfg: DictConfig) -> Any:
    """The network that the stage trains, without memory for its weights."""
    import torch
    from transformers import CLIPTokenizer

    with torch.device("meta"):
        if "objective" in cfg:
            return build(cfg.model)
        if "text_encoder" in cfg:
            words = {str(number): number for number in range(cfg.text_encoder.vocab_size - 2)}
            tokenizer = CLIPTokenizer(vocab=words, merges=[], model_max_length=cfg.text_encoder.max_length)
            return build(cfg.text_encoder, captions=[], tokenizer=tokenizer).clip
        return build(cfg.vae)


def checkpoints(cfg: DictConfig) -> int:
    """How many checkpoints lie in the folder at most, one of them half written."""
    if not (keeping := (cfg.get("callbacks") or {}).get("checkpoints")):
        return 0
    milestones = cfg.max_steps // keeping.keep_every if keeping.keep_every else 0
    return keeping.keep_last + (keeping.get("keep_best") or 0) + milestones + 1

"""How much a run will lay down, before anything of it is built."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sdscratch.config import build


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

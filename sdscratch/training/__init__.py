"""The three stages as LightningModules, and the callbacks around them, one job each. The names load on first use."""

from importlib import import_module
from typing import Any

_HOMES = {
    "Augment": "sdscratch.training.augment",
    "Autoencoder": "sdscratch.training.autoencoder",
    "Checkpoints": "sdscratch.training.checkpoints",
    "Clip": "sdscratch.training.clip",
    "DataParallel": "sdscratch.training.data_parallel",
    "Guard": "sdscratch.training.guards",
    "LatentDiffusion": "sdscratch.training.latent_diffusion",
    "Metrics": "sdscratch.training.metrics",
    "Plots": "sdscratch.training.plots",
    "PosthocEma": "sdscratch.training.posthoc_ema",
    "Previews": "sdscratch.training.previews",
    "ProgressBar": "sdscratch.training.progress",
    "RunFolderIO": "sdscratch.training.checkpoints",
    "Stage": "sdscratch.training.stage",
    "Validation": "sdscratch.training.validation",
    "WandbTracker": "sdscratch.training.tracking",
    "WarmupConstant": "sdscratch.training.optim",
    "WarmupCosine": "sdscratch.training.optim",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'sdscratch.training' has no attribute {name!r}")

"""`sdscratch ema RUN length=0.07`: a model folder with an average of any length, made after training."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig

from sdscratch.commands.data_paths import optional
from sdscratch.commands.import_model import require_free
from sdscratch.console import warn
from sdscratch.errors import DataError, check_whole
from sdscratch.interop.diffusers_folder import find_model_folder, load_model_folder, save_model
from sdscratch.models.weights import misfits
from sdscratch.run_folder import RunFolder
from sdscratch.training.posthoc_ema import reconstruct
from sdscratch.training.power_ema import exponent

FAR = 0.05
"""From the profile asked for, as a share of its size: worth a warning."""


def run(cfg: DictConfig) -> None:
    """Write the run's model with another average in it to `out`."""
    exponent(cfg.length)
    if cfg.step is not None:
        check_whole("step", cfg.step)
    run = RunFolder(cfg.model)
    ending = "" if cfg.step is None else f"_step_{cfg.step:08d}"
    out = run.path / f"model_ema_{cfg.length}{ending}" if optional(cfg, "out") is None else Path(cfg.out)
    require_free(out)
    model = load_model_folder(find_model_folder(run.path))
    found = reconstruct(run, cfg.length, cfg.step)
    if differing := misfits(found.weights, model.unet.state_dict()):
        raise DataError(f"the snapshots of {run.path} are of another network than its model: {differing[0]}")
    if found.distance > FAR:
        warn(
            f"{found.snapshots} snapshots do not make an average of length {cfg.length}: its profile is {found.distance:.0%} "
            "off. Nearer the tracked lengths, or with more snapshots, it would fit better"
        )
    model.unet.load_state_dict(found.weights, strict=True)
    made = {"length": cfg.length, "snapshots": found.snapshots, "profile_distance": found.distance}
    about = {**model.about, "step": found.step, "samples_seen": found.samples_seen, "posthoc_ema": made}
    save_model(out, model._replace(about=about))
    print(f"{out}: step {found.step}, out of {found.snapshots} snapshots, its profile {found.distance:.2%} off")

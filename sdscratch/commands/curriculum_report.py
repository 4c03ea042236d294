"""`sdscratch curriculum report`: a page about what a curriculum has done so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from omegaconf import DictConfig
from PIL import Image

from sdscratch.commands.assembly import make_stage
from sdscratch.commands.curriculum_status import entries_of
from sdscratch.config import build, load_config
from sdscratch.console import say
from sdscratch.data.grid import captioned_grid
from sdscratch.errors import RunFolderError
from sdscratch.evaluation.curriculum_report import PhaseResult, write_report
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder
from sdscratch.training.curriculum import Entry

SHOWN = 8  # pictures of each phase


def run(cfg: DictConfig) -> None:
    """Write report.html into the curriculum's folder. Raises RunFolderError where no phase of a UNet is done."""
    folder, entries = entries_of(cfg)
    runs = {name: RunFolder(entry.run) for name, entry in entries.items() if entry.run is not None}
    done = {name: found for name, found in runs.items() if _draws(entries[name], found)}
    if not done:
        raise RunFolderError(f"{folder.path} has no finished phase of a UNet to report on yet")
    prompts = load_config(next(reversed(done.values())).recipe_file).stage.preview_prompts[:SHOWN]
    losses = _held_out_losses(done)
    phases = []
    for name, found in runs.items():
        grid = _grid(found, prompts) if name in done else None
        phases.append(PhaseResult(name, found, asdict(entries[name]), grid))
    print(write_report(folder.path, f"Curriculum {cfg.name}", phases, losses))


def _draws(entry: Entry, run: RunFolder) -> bool:
    return entry.status == "done" and (run.model_folder / "unet").is_dir()


def _held_out_losses(runs: Mapping[str, RunFolder]) -> dict[str, dict[str, float]]:
    """{after which phase: {on whose held-out samples: loss}}; one data set at a time, and one network at a time."""
    losses: dict[str, dict[str, float]] = {name: {} for name in runs}
    for name, run in runs.items():
        say(f"{name}: its held-out samples, after each phase")
        cfg = load_config(run.recipe_file)
        datamodule = build(cfg.dataset)
        datamodule.prepare_data()
        datamodule.start_step = cfg.max_steps  # as at its end: what the run has learnt beside its weights is read again
        stage = make_stage(cfg, datamodule, run)
        stage.source_names = datamodule.source_names
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        stage.encoders.to(device)
        loader = datamodule.val_dataloader(whole=True)
        for after, other in runs.items():
            unet = load_model_folder(other.model_folder).unet.to(device)
            batches = (stage.transfer_batch_to_device(batch, device, 0) for batch in loader)
            losses[after][name] = _own_loss(cfg, stage.evaluate(unet, batches))
    return losses


def _own_loss(cfg: DictConfig, measures: Mapping[str, float]) -> float:
    """On what the phase is trained on, in its shares; earlier sources, which mixtures measure as well, are left out."""
    shares = {name: source.share for name, source in cfg.dataset.get("sources", {}).items()}
    of_sources = [(share, measures.get(f"val/loss/{name}")) for name, share in shares.items()]
    if not of_sources or any(loss is None for _, loss in of_sources):
        return measures["val/loss"]
    return sum(share * loss for share, loss in of_sources if loss is not None) / sum(shares.values())


def _grid(run: RunFolder, prompts: Sequence[Any]) -> Image.Image:
    texts = [str(prompt) for prompt in prompts]
    return captioned_grid(TextToImage.from_pretrained(run.path)(texts, seed=0), texts, columns=4)

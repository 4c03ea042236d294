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
from sdscratch.config import build, load_config, settings
from sdscratch.console import say
from sdscratch.data.grid import captioned_grid
from sdscratch.devices import best_device
from sdscratch.errors import RunFolderError
from sdscratch.evaluation.comparison import same_question
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
    """{after which phase: {on whose held-out samples: loss}}; one data set at a time, and one network at a time.

    Where a network was taught to predict something else than the phase asks for, there is no number.
    """
    losses: dict[str, dict[str, float]] = {name: {} for name in runs}
    configs = {name: load_config(run.recipe_file) for name, run in runs.items()}
    for (name, run), cfg in zip(runs.items(), configs.values(), strict=True):
        say(f"{name}: its held-out samples, after each phase")
        datamodule = build(cfg.dataset)
        datamodule.prepare_data()
        datamodule.start_step = cfg.max_steps  # as at its end: what the run has learnt beside its weights is read again
        stage = make_stage(cfg, datamodule, run)
        stage.source_weights = datamodule.source_weights
        device = torch.device(best_device())
        stage.encoders.to(device)
        loader = datamodule.val_dataloader(whole=True)
        for after, other in runs.items():
            if not same_question(settings(cfg), settings(configs[after])):
                continue
            unet = load_model_folder(other.model_folder).unet.to(device)
            batches = (stage.transfer_batch_to_device(batch, device, 0) for batch in loader)
            losses[after][name] = stage.evaluate(unet, batches)["val/loss"]
    return losses


def _grid(run: RunFolder, prompts: Sequence[Any]) -> Image.Image:
    texts = [str(prompt) for prompt in prompts]
    return captioned_grid(TextToImage.from_pretrained(run.path)(texts, seed=0), texts, columns=4)

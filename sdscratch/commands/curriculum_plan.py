"""`sdscratch curriculum plan`: what a curriculum would do and cost, before anything starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Table

from sdscratch.commands.curriculum_status import wide_console
from sdscratch.commands.data_folders import folders_of, replayed_folders
from sdscratch.commands.footprint import footprint
from sdscratch.commands.launch import world_size
from sdscratch.commands.phases import Phase, phases_of
from sdscratch.config import build
from sdscratch.doctor.disk import readable
from sdscratch.errors import ConfigError, DataError
from sdscratch.run_folder import RunFolder

COLUMNS = ("phase", "steps", "samples", "epochs", "learning rate", "data", "fingerprint", "GPU-hours", "disk")

COSTS = (
    "stage._target_",
    "model",
    "vae",
    "text_encoder",
    "dataset.resolution",
    "global_batch_size",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.precision",
    "trainer.accumulate_grad_batches",
)


def run(cfg: DictConfig) -> None:
    """Print a line for each phase. Reads what is there, and writes nothing."""
    phases = phases_of(cfg)
    table = Table(*COLUMNS, title=f"{cfg.name}: {len(phases)} phases")
    total, hours, bytes_kept = 0, 0.0, 0
    rates = {phase.name: _rate(phase, phases, cfg.samples_per_second) for phase in phases}
    for phase in phases:
        size, part = phase.cfg, phase.cfg.max_steps * phase.cfg.global_batch_size
        names, samples, fingerprint = _data(size.dataset)
        rate = rates[phase.name]
        spent = part / rate / 3600 * world_size(size.trainer) if rate else None
        disk = footprint(size).total
        total, hours, bytes_kept = total + part, hours + (spent or 0), bytes_kept + disk
        table.add_row(
            phase.name,
            f"{size.max_steps:,}",
            f"{part:,}",
            _epochs(part, samples, size.length.samples),
            _learning_rate(size),
            escape(names),
            fingerprint,
            "unknown" if spent is None else f"{spent:,.1f}",
            readable(disk),
        )
    known = "unknown" if None in rates.values() else f"{hours:,.1f}"
    table.add_section()
    table.add_row(
        "all", f"{sum(p.cfg.max_steps for p in phases):,}", f"{total:,}", "", "", "", "", known, readable(bytes_kept)
    )
    console = wide_console()
    console.print(table)
    if None in rates.values():
        console.print(
            "GPU-hours are unknown until a rate is measured: train some hundred steps of the phase, or set "
            "samples_per_second to what all devices together have done"
        )


def _epochs(seen: int, samples: int | None, described: int | None) -> str:
    """Of the data that are there; else of those described."""
    if samples:
        return f"{seen / samples:.2f}"
    return f"{seen / described:.2f} described" if described else "unknown"


def _learning_rate(cfg: DictConfig) -> str:
    factor, warmup = build(cfg.lr_schedule), cfg.lr_schedule.get("warmup_steps", 0)
    highest = cfg.optimizer.lr * factor(max(1, min(warmup, cfg.max_steps)) - 1)
    last = cfg.optimizer.lr * factor(cfg.max_steps - 1)
    return f"{highest:.3g} to {last:.3g}, warm-up {warmup:,}"


def _data(dataset: DictConfig) -> tuple[str, int | None, str]:
    """Names of the folders, samples in them for training, and their fingerprint; "missing" where one is not there."""
    folders, replayed = folders_of(dataset), replayed_folders(dataset)
    names = ", ".join(folder.name for folder in folders if folder not in replayed)
    if replayed:
        names += f"; replay of {', '.join(folder.name for folder in replayed)}"
    if missing := [folder.name for folder in folders if not folder.exists()]:
        return names, None, "missing" if len(missing) == len(folders) else f"missing: {', '.join(missing)}"
    try:
        about = build(dataset).about()
    except (ConfigError, DataError) as error:
        return names, None, f"refused: {str(error).partition('. ')[0]}"
    return names, about["samples"], about["fingerprint"]


def _rate(phase: Phase, phases: Sequence[Phase], given: Any) -> float | None:
    """Samples per second of all devices: as given; else as this phase, or one of the same network and devices, has done."""
    if given is not None:
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            raise ConfigError(f"samples_per_second={given}: expected a number above 0, or null")
        return float(given)
    for candidate in (phase, *(other for other in phases if _cost(other.cfg) == _cost(phase.cfg))):
        if (rate := _measured(candidate.folder)) is not None:
            return rate
    return None


def _cost(cfg: DictConfig) -> list[Any]:
    """What the time of a sample depends on."""
    return [OmegaConf.select(cfg, key) for key in COSTS]


def _measured(run: RunFolder) -> float | None:
    """The median of the run's rows, the first of which holds the start."""
    rates = sorted(row["samples_per_second"] for row in run.read_metrics()[1:] if "samples_per_second" in row)
    return rates[len(rates) // 2] if rates else None

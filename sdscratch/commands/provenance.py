"""How a model came about, as far as the folders of its runs and of their data still say."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from omegaconf import OmegaConf

import sdscratch
from sdscratch.config import load_config
from sdscratch.config.saving import plain
from sdscratch.data.manifest import Manifest
from sdscratch.errors import DataError
from sdscratch.interop.model_card import DataFacts, PhaseFacts, Provenance
from sdscratch.masking import mask
from sdscratch.run_folder import RunFolder


def provenance(model: str) -> Provenance:
    """Of a run, or a run's model folder; next to nothing of others."""
    runs = list(_lineage(model))
    previews = sorted(runs[0].path.glob("samples/step_*/ema.png")) if runs else []
    samples = previews[-1].read_bytes() if previews else None
    return Provenance([_phase(run) for run in reversed(runs)], samples, _commit())


def _lineage(model: str) -> Iterator[RunFolder]:
    """The run of a model, then the one that its first weights came from, and so on."""
    seen: set[Path] = set()
    while (run := _run_of(model)) is not None and run.path.resolve() not in seen:
        seen.add(run.path.resolve())
        yield run
        origin = run.lineage().get("init_from")
        model = str(origin.get("from", "")) if isinstance(origin, dict) else ""


def _run_of(model: str) -> RunFolder | None:
    """The run that is meant by a run, a checkpoint or a model folder."""
    path = Path(model or "/dev/null")
    for folder in (path, path.parent, path.parent.parent):
        if (run := RunFolder(folder)).config_file.is_file():
            return run
    return None


def _phase(run: RunFolder) -> PhaseFacts:
    cfg, state = load_config(run.config_file), run.state()
    objective = OmegaConf.select(cfg, "objective._target_", default="?").rpartition(".")[2]
    if gamma := OmegaConf.select(cfg, "objective.min_snr_gamma"):
        objective = f"{objective}, min-SNR gamma {gamma}"
    optimizer = OmegaConf.select(cfg, "optimizer._target_", default="?").rpartition(".")[2]
    rate, batch = OmegaConf.select(cfg, "optimizer.lr"), OmegaConf.select(cfg, "global_batch_size")
    return PhaseFacts(
        name=str(cfg.get("name", run.path.name)),
        steps=state.get("step"),
        samples_seen=state.get("samples_seen"),
        objective=objective,
        ema_decay=OmegaConf.select(cfg, "stage.ema_decay"),
        optimizer=f"{optimizer}, learning rate {rate}, batches of {batch}",
        data=[_data(path) for path in _paths(plain(cfg).get("dataset", {}))],
        metric=run.objective(),
    )


def _paths(dataset: object) -> Iterator[str]:
    """Of folders that were trained on, however deep in the settings."""
    if isinstance(dataset, dict):
        for key, value in dataset.items():
            if key == "path" and isinstance(value, str):
                yield value
            else:
                yield from _paths(value)


def _data(path: str) -> DataFacts:
    name = "/".join(Path(path).parts[-2:])  # the rest is of one machine
    try:
        manifest = Manifest.read(Path(path)) or Manifest.read(Path(path) / "train")  # where the embedded set is drawn
    except DataError:
        manifest = None
    if manifest is None:
        return DataFacts(name)
    made_by = mask(json.dumps(manifest.made_by, ensure_ascii=False))
    return DataFacts(name, manifest.total, manifest.sources, manifest.licences, manifest.dropped, made_by)


def _commit() -> str | None:
    """Of the checkout that this code lies in; None where it is installed."""
    root = Path(sdscratch.__file__).parents[1]
    if not (root / ".git").exists():
        return None
    try:
        asked = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout.strip() or None

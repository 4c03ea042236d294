"""How a model came about, as far as the folders of its runs and of their data still say."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from sdscratch.commands.code_version import commit
from sdscratch.config import load_config
from sdscratch.config.saving import plain
from sdscratch.data.manifest import Manifest
from sdscratch.errors import ConfigError, DataError
from sdscratch.evaluation.results import ALL, Evaluation, Table
from sdscratch.files import read_json
from sdscratch.interop.diffusers_folder import Model
from sdscratch.interop.model_card import DataFacts, MeasureFacts, PhaseFacts, Provenance
from sdscratch.masking import mask
from sdscratch.models.encoders import fingerprint
from sdscratch.run_folder import RunFolder

ENCODERS = {"vae": "VAE", "text_encoder": "text encoder"}
MACHINES_PATH = re.compile(r"(?<!\S)/(?:\S*/)?([^/\s]+/[^/\s]+)")


def provenance(model: str, about: Mapping[str, Any]) -> Provenance:
    """Of a run, one of its checkpoints or its model folder; next to nothing of others. about: what the model says of itself."""
    runs = list(_lineage(model))
    if not runs:
        return Provenance(commit=commit())
    last = _phase(runs[0])
    if (
        about.get("posthoc_ema") or about.get("step", last.steps) != last.steps
    ):  # not the weights that the run ended with
        last = replace(last, steps=about.get("step"), samples_seen=about.get("samples_seen"), metric={})
    phases = [*map(_phase, reversed(runs[1:])), last]
    return Provenance(phases, _encoders(runs[0]), *_preview(runs[0], last.steps), commit())


def _preview(run: RunFolder, step: int | None) -> tuple[bytes | None, int | None]:
    """The latest up to a step, and of which step it is."""
    files = {file.parent.name.removeprefix("step_"): file for file in run.path.glob("samples/step_*/ema.png")}
    known = {int(number): file for number, file in files.items() if number.isdecimal()}
    if not (shown := [number for number in known if step is None or number <= step]):
        return None, None
    return known[max(shown)].read_bytes(), max(shown)


def measures(folder: Path, model: Model, asked_for: bool) -> list[MeasureFacts]:
    """What an evaluation has found of this model's UNet and VAE; of other networks its numbers would say nothing.

    asked_for: raise DataError where there is no evaluation, and ConfigError where it is of another model.
    """
    try:
        tables = Evaluation.read(folder).tables
    except DataError:
        if asked_for:
            raise
        return []
    own = {fingerprint(model.unet), fingerprint(model.encoders.vae)}
    found = [table for table in tables if table.protocol.get("network") in own]
    if asked_for and not found:
        raise ConfigError(f"evaluation={folder} has measured other networks than these: evaluate this model first")
    return [_measured(table) for table in found]


def _measured(table: Table) -> MeasureFacts:
    """The rows over everything; those of the groups where there are no others."""
    over_all = [(row.measure, row.value, row.low, row.high, row.count) for row in table.rows if row.group == ALL]
    of_groups = [(f"{row.measure}, {row.group}", row.value, row.low, row.high, row.count) for row in table.rows]
    told = [f"{key} {_portable(value)}" for key, value in table.protocol.items() if key != "model" and value != ""]
    return MeasureFacts(table.title, over_all or of_groups, ", ".join(told), table.note)


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


def _encoders(run: RunFolder) -> dict[str, PhaseFacts | str]:
    """What the UNet stands on: the run of each, or the name that it is known by; those with random weights are not named."""
    cfg = load_config(run.config_file)
    paths = {label: OmegaConf.select(cfg, f"{key}.path") for key, label in ENCODERS.items()}
    return {
        label: _phase(trained) if (trained := _run_of(str(path))) else _portable(path)
        for label, path in paths.items()
        if path is not None
    }


def _phase(run: RunFolder) -> PhaseFacts:
    cfg, state = load_config(run.config_file), run.state()
    objective = OmegaConf.select(cfg, "objective._target_", default="").rpartition(".")[2]
    if gamma := OmegaConf.select(cfg, "objective.min_snr_gamma"):
        objective = f"{objective}, min-SNR gamma {gamma}"
    optimizer = OmegaConf.select(cfg, "optimizer._target_", default="?").rpartition(".")[2]
    rate, batch = OmegaConf.select(cfg, "optimizer.lr"), OmegaConf.select(cfg, "global_batch_size")
    environment = read_json(run.path / "environment.json")
    return PhaseFacts(
        name=str(cfg.get("name", run.path.name)),
        steps=state.get("step"),
        samples_seen=state.get("samples_seen"),
        objective=objective,
        ema_decay=OmegaConf.select(cfg, "stage.ema_decay"),
        optimizer=f"{optimizer}, learning rate {rate}, batches of {batch}",
        data=[_data(path) for path in _paths(plain(cfg).get("dataset", {}))],
        metric=run.objective(),
        code={key: environment[key] for key in ("sdscratch", "commit", "torch", "gpu") if environment.get(key)},
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


def _portable(value: Any) -> str:
    """A setting as text; of paths of one machine the last two parts."""
    return mask(MACHINES_PATH.sub(r"\1", str(value)))

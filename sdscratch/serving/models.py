"""Which models there are to draw with, and the one that is drawn with."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

from sdscratch.errors import ConfigError, RunFolderError
from sdscratch.interop.diffusers_folder import INDEX
from sdscratch.interop.run_checkpoint import run_around
from sdscratch.models.encoders import downsampling_factor
from sdscratch.pipeline import TextToImage, Weights
from sdscratch.run_folder import RunFolder, runs_below
from sdscratch.serving.examples import examples_of
from sdscratch.serving.preview import Preview

Kind = Literal["run", "checkpoint", "folder", "file", "hub"]


class Entry(NamedTuple):
    """One that may be chosen. id: its name on the network; path: what `model=` takes."""

    id: str
    path: str
    kind: Kind
    weights: list[Weights]


class Shelf:
    """The model that the server was started with, and the finished runs below `runs`. Nothing else can be asked for."""

    def __init__(self, model: str, runs: Path) -> None:
        self._model, self.runs = model, runs

    @cached_property
    def first(self) -> Entry:
        """The one that the server was started with, by that name even when it is gone."""
        return self._entry(self._model)

    def entries(self) -> list[Entry]:
        """As they are now: runs go on while a server runs."""
        found = [self.first]
        for run in runs_below(self.runs).values():
            with suppress(RunFolderError):  # it cannot be read: the others can
                if (run.model_folder / INDEX).is_file():
                    found.append(self._entry(run.path))
                if run.state().get("stage") == "LatentDiffusion":
                    found.extend(self._entry(checkpoint.path) for checkpoint in run.checkpoints())
        return [*{entry.id: entry for entry in reversed(found)}.values()][::-1]

    def find(self, id: str) -> Entry | None:
        """None where there is none, or none any more."""
        return next((entry for entry in self.entries() if entry.id == id), None)

    def _entry(self, model: str | Path) -> Entry:
        path = Path(model)
        kind, has_raw = _kind_of(path)
        return Entry(self._id(path), str(model), kind, ["ema", "raw"] if has_raw else ["ema"])

    def _id(self, path: Path) -> str:
        """Where it is below `runs`; of what lies elsewhere its name alone, for paths are nobody's business."""
        if not path.exists():
            return str(path)  # OWNER/NAME, of the hub
        place = path.resolve()
        inside = place.is_relative_to(self.runs.resolve())
        return place.relative_to(self.runs.resolve()).as_posix() if inside else place.name


def _kind_of(path: Path) -> tuple[Kind, bool]:
    """And whether there are weights as training left them."""
    if run_around(path):
        return "checkpoint", True
    if path.is_file():
        return "file", False
    run = RunFolder(path)
    if not run.path.exists():
        return "hub", False
    return "run" if run.holds_a_run() else "folder", bool(run.checkpoints())


class Served:
    """A model that is loaded, with what belongs to it."""

    def __init__(self, entry: Entry, weights: Weights, device: str | None, dtype: str = "fp32") -> None:
        """weights: what requests get that do not say. Raises SdscratchError where it cannot be drawn with."""
        if weights not in entry.weights:
            raise ConfigError(f"weights={weights}, but {entry.id} has {' and '.join(entry.weights)} only")
        self.entry, self.weights = entry, weights
        self.pipe = TextToImage.from_pretrained(entry.path, device, dtype)
        self.pipe.network(weights)
        self.factor = downsampling_factor(self.pipe.encoders.vae)
        self.preview = Preview(self.pipe.encoders, self.factor)
        self.examples = examples_of(entry.path)

    @property
    def usable_weights(self) -> list[Weights]:
        """Those that there are, the usual one first."""
        return sorted(self.entry.weights, key=lambda weights: weights != self.weights)

    @property
    def device(self) -> str:
        """cpu, cuda:0, ..."""
        return str(next(self.pipe.unet.parameters()).device)

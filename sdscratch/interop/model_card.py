"""The page that goes with an exported model: what it is, how it came about, how to use it. Only what is known is said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from sdscratch import __version__
from sdscratch.interop.diffusers_folder import Model
from sdscratch.models.released_unet import ReleasedUNet


@dataclass(frozen=True)
class DataFacts:
    """A folder of shards, by the end of its path, and what its manifest says: None and empty without one."""

    path: str
    total: int | None = None
    sources: Mapping[str, int] = field(default_factory=dict)
    licences: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)
    made_by: str = ""


@dataclass(frozen=True)
class PhaseFacts:
    """A run on the way to the model.

    objective: "" where there is no choice of it. metric: the content of its objective.json. code: what it was trained with.
    """

    name: str
    steps: int | None
    samples_seen: int | None
    objective: str
    ema_decay: float | None
    optimizer: str
    data: Sequence[DataFacts]
    metric: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class MeasureFacts:
    """A table of an evaluation. rows: measure, value, the ends of its interval (or None), number of samples."""

    title: str
    rows: Sequence[tuple[str, float, float | None, float | None, int]]
    protocol: str
    note: str = ""


@dataclass(frozen=True)
class Provenance:
    """All that is known of how a model came about.

    phases: oldest first. encoders: those that its UNet was trained on, by what they are: their runs, or their names.
    samples: a PNG of pictures that the run drew at samples_step. commit: of the code that writes the card.
    """

    phases: Sequence[PhaseFacts] = ()
    encoders: Mapping[str, PhaseFacts | str] = field(default_factory=dict)
    samples: bytes | None = None
    samples_step: int | None = None
    commit: str | None = None


def model_card(
    name: str,
    model: Model,
    dtype: str,
    provenance: Provenance,
    measures: Sequence[MeasureFacts] = (),
    *,
    file: str,
    configs: str | None = None,
) -> str:
    """Markdown. file: what to load. configs: of a single file, the folder beside it."""
    environment = Environment(
        loader=PackageLoader("sdscratch.interop", ""),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md").render(
        name=name,
        version=__version__,
        commit=provenance.commit,
        about=model.about,
        dtype=dtype,
        parameters=sum(parameter.numel() for parameter in model.unet.parameters()),
        prediction_type=model.prediction_type,
        phases=provenance.phases,
        encoders=provenance.encoders,
        measures=measures,
        samples_step=provenance.samples_step,
        released=isinstance(model.unet, ReleasedUNet),
        single_file=configs is not None,
        file=file,
        configs=configs,
    )

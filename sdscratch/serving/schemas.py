"""What goes in and comes out, as OpenAPI shows it. The ranges here hold for every server; a server's own are in GET /config."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from sdscratch.diffusion.samplers import SAMPLERS
from sdscratch.pipeline import Weights
from sdscratch.serving.problems import ProblemBody

LARGEST_SEED = 2**32 - 1
MAX_SIDE, MAX_STEPS, MAX_GUIDANCE, MAX_COUNT, MAX_TEXT = 4096, 1000, 100.0, 64, 10_000
Status = Literal["queued", "running", "done", "failed", "cancelled"]


# What a ValueError of these says is what is expected.


def _known_sampler(name: str) -> str:
    if name not in SAMPLERS:
        raise ValueError(f"one of {', '.join(SAMPLERS)}")
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("some text")
    return text


Prompt = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT), AfterValidator(_not_blank)]
NegativePrompt = Annotated[str, StringConstraints(max_length=MAX_TEXT)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS)]
Guidance = Annotated[float, Field(ge=0, le=MAX_GUIDANCE, allow_inf_nan=False)]
Rescale = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
SamplerName = Annotated[str, AfterValidator(_known_sampler), Field(json_schema_extra={"enum": list(SAMPLERS)})]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Count = Annotated[int, Field(ge=1, le=MAX_COUNT)]

EXAMPLE: dict[str, Any] = {"prompt": "a red circle on a blue background", "steps": 20, "cfg_scale": 3.0, "seed": 7}


class Wish(BaseModel):
    """What to draw. What is left out, or null, is the model's own; a seed that is left out is drawn, and told."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [EXAMPLE]})

    prompt: Prompt
    negative_prompt: NegativePrompt = ""
    steps: Steps | None = None
    cfg_scale: Guidance | None = Field(None, description="how hard the prompt pulls; 1: not at all, at half the cost")
    guidance_rescale: Rescale = Field(0.0, description="against overexposure")
    sampler: SamplerName | None = None
    seed: Seed | None = Field(None, description="of the first picture; the next has the next")
    width: Side | None = None
    height: Side | None = None
    n: Count = Field(1, description="how many pictures")
    weights: Weights | None = Field(None, description="the averaged network (ema), or as training left it (raw)")


class Parameters(BaseModel):
    """What is or was drawn, with nothing left open: the same again draws the same pictures."""

    prompt: str
    negative_prompt: str
    steps: int
    cfg_scale: float
    guidance_rescale: float
    sampler: str
    seed: int
    width: int
    height: int
    n: int
    weights: Weights


class Drawn(Parameters):
    """The pictures of POST /generate, PNGs as data URIs, and what they were drawn with."""

    image: str = Field(description="the first of the images")
    images: list[str]
    model: str
    notes: list[str] = Field(description="what is good to know, as that the end of the prompt was not read")
    generation_time_s: float = Field(description="without the time in the queue")


class Accepted(BaseModel):
    """position: how many jobs come before this one."""

    id: str
    position: int


class JobView(BaseModel):
    """A job as it is now. images: data URIs, once it is done."""

    id: str
    status: Status
    position: int
    step: int
    steps: int
    images: list[str]
    notes: list[str]
    parameters: Parameters
    model: str | None
    generation_time_s: float | None
    error: ProblemBody | None


class Health(BaseModel):
    """status: whether it draws. queue: how many jobs wait or run."""

    status: Literal["loading", "ready", "stopping", "failed"]
    device: str | None
    queue: int
    model: str | None


class ModelView(BaseModel):
    """id: for PUT /models/current. weights: those that there are."""

    id: str
    kind: Literal["run", "checkpoint", "folder", "file", "hub"]
    weights: list[Weights]
    current: bool


class ModelChoice(BaseModel):
    """Which model to draw with from now on; weights: what requests get that do not say."""

    model_config = ConfigDict(extra="forbid", strict=True, json_schema_extra={"examples": [{"id": "quickstart"}]})

    id: Annotated[str, StringConstraints(min_length=1, max_length=1000)]
    weights: Weights = "ema"


class Size(BaseModel):
    """In pixels."""

    width: int
    height: int


class Range(BaseModel):
    """From min to max, in steps of `step` where there are any. Of texts, their lengths."""

    min: float
    max: float
    step: float | None = None


class Configuration(BaseModel):
    """All that a page needs to know."""

    model: dict[str, Any] = Field(description="id, kind, weights and prediction_type of the current one")
    defaults: dict[str, Any]
    limits: dict[str, Range]
    samplers: list[str]
    sizes: list[Size]
    weights: list[Weights]
    examples: list[str] = Field(description="prompts that the model's training drew of itself, if it is known")
    max_n: int
    max_cost: int = Field(description="of width x height x steps x n")
    auth: bool = Field(description="whether requests need `Authorization: Bearer TOKEN`")
    version: str

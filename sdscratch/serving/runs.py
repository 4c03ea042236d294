"""What the page of runs shows: which there are, and of each its numbers and pictures, as training writes them."""

from __future__ import annotations

import io
import re
from glob import glob
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, Field

from sdscratch.errors import RunFolderError
from sdscratch.files import is_text, read_bytes
from sdscratch.run_folder import RunFolder, runs_below
from sdscratch.serving.metrics import MOST, Point, metrics_of
from sdscratch.serving.problems import Problem, ProblemBody

SAMPLES = re.compile(r"step_(\d+)")
Points = Annotated[int, Query(ge=1, le=MOST, description="at most so many points of each series")]


class RunView(BaseModel):
    """name: its folder below paths.runs. updated: when it last wrote a row, in seconds since 1970."""

    name: str = Field(examples=["quickstart/autoencoder"])
    status: str | None = Field(examples=["running"])
    stage: str | None = Field(examples=["LatentDiffusion"])
    step: int
    max_steps: int | None
    samples_seen: int | None
    updated: float


class Picture(Response):
    """Read at once, for its run may be gone before an answer is under way."""

    media_type = "image/png"


class MetricsView(BaseModel):
    """By column of metrics.csv, (step, value) with rising steps; a value that is no finite number is null."""

    series: dict[str, list[Point]]


class SampleView(BaseModel):
    """The pictures drawn at a step."""

    step: int
    pictures: list[str] = Field(examples=[["ema.png"]])


def runs_router(root: Path) -> APIRouter:
    """The runs below `root`. Names are looked up among what is there, and never made into paths."""
    router = APIRouter(
        prefix="/runs", tags=["runs"], responses={404: {"model": ProblemBody, "description": "no such run or picture"}}
    )

    @router.get("")
    def runs() -> list[RunView]:
        """Those that there are, the one that last wrote something first."""
        views = [_view(name, run) for name, run in runs_below(root).items()]
        return sorted(views, key=lambda view: view.updated, reverse=True)

    @router.get("/{name:path}/metrics")
    def metrics(name: str, points: Points = 800) -> MetricsView:
        """The numbers so far. Where there are more than `points` of a kind, each is the mean of its neighbours."""
        return MetricsView(series=metrics_of(_find(root, name).metrics_file).series(points))

    @router.get("/{name:path}/samples")
    def samples(name: str) -> list[SampleView]:
        """At which steps pictures were drawn, and which, the earliest first."""
        found = _samples(_find(root, name))
        return [SampleView(step=step, pictures=sorted(found[step])) for step in sorted(found)]

    @router.get("/{name:path}/samples/{step}/{picture}", response_class=Picture)
    def picture(name: str, step: int, picture: str) -> Picture:
        """One of them, a PNG."""
        try:
            content = read_bytes(_samples(_find(root, name))[step][picture])
        except (KeyError, OSError) as error:
            hint = "GET /runs/NAME/samples has those that there are"
            raise Problem(404, "there is no such picture", "picture", hint) from error
        if not _is_whole(content):
            raise Problem(409, "this picture cannot be read", "picture", "it is damaged, or still being written")
        return Picture(content)

    return router


def _find(root: Path, name: str) -> RunFolder:
    if (run := runs_below(root).get(name)) is None:
        raise Problem(404, "there is no such run", "name", "GET /runs has those that there are")
    return run


def _view(name: str, run: RunFolder) -> RunView:
    try:
        state, status = run.state(), run.status()
    except RunFolderError:  # it cannot be read: the others can
        state, status = {}, None
    return RunView(
        name=name,
        status=status,
        stage=state.get("stage"),
        step=state.get("step", 0),
        max_steps=state.get("max_steps"),
        samples_seen=state.get("samples_seen"),
        updated=max(_written(run.metrics_file), _written(run.path / "state.json")),
    )


def _written(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _is_whole(png: bytes) -> bool:
    """A browser shows as much as there is, and be it nothing, without a word."""
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            image.verify()
    except Exception:  # Pillow has many for this, and names none of them
        return False
    return True


def _samples(run: RunFolder) -> dict[int, dict[str, Path]]:
    """By step, and then by file name."""
    found: dict[int, dict[str, Path]] = {}
    # Not by pathlib's glob, which fails where a folder is removed meanwhile.
    for name in glob("step_*/*.png", root_dir=run.path / "samples"):
        path = run.path / "samples" / name
        if is_text(path) and (number := SAMPLES.fullmatch(path.parent.name)):
            found.setdefault(int(number[1]), {})[path.name] = path
    return found

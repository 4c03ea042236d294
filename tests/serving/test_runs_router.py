"""What the page of runs is told: which runs there are, their numbers and their pictures, and nothing else from the disk."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdscratch.run_folder import RunFolder
from sdscratch.serving.problems import answer_problems
from sdscratch.serving.runs import runs_router


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Two runs: `shapes`, which runs, and `shapes/vae`, done long ago; and beside them a file that is nobody's business."""
    root = tmp_path / "runs"
    for name, status, step in (("shapes", "running", 30), ("shapes/vae", "done", 900)):
        run = RunFolder(root / name)
        run.create()
        run.set_state(status=status, stage="LatentDiffusion", step=step, max_steps=900, samples_seen=16 * step)
    run = RunFolder(root / "shapes")
    for step, loss in ((10, 0.5), (20, math.nan), (30, 0.25)):
        run.append_metrics({"step": step, "train/loss": loss} | ({"val/loss": 0.3} if step == 30 else {}))
    for step in (20, 10):
        folder = run.path / "samples" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (step, 0, 0)).save(folder / "ema.png")
    os.utime(root / "shapes" / "vae" / "state.json", (1, 1))
    (tmp_path / "secret.png").write_bytes(b"not for everybody")
    run.lock()
    yield root
    run.unlock()


@pytest.fixture
def client(root: Path) -> TestClient:
    app = FastAPI()
    answer_problems(app)
    app.include_router(runs_router(root))
    return TestClient(app)


def test_runs_are_listed_with_their_state_the_one_that_wrote_last_first(client):
    first, second = client.get("/runs").json()
    assert (first["name"], first["status"], first["step"], first["max_steps"]) == ("shapes", "running", 30, 900)
    assert (second["name"], second["status"], second["updated"]) == ("shapes/vae", "done", 1)


def test_metrics_are_series_by_column_in_which_nan_is_null(client, root):
    series = client.get("/runs/shapes/metrics").json()["series"]
    assert series == {"train/loss": [[10, 0.5], [20, None], [30, 0.25]], "val/loss": [[30, 0.3]]}
    assert client.get("/runs/shapes/vae/metrics").json() == {"series": {}}
    RunFolder(root / "shapes").append_metrics({"step": 40, "train/loss": 0.2})
    grown = client.get("/runs/shapes/metrics", params={"points": 2}).json()["series"]["train/loss"]
    assert grown == [[20, None], [40, 0.225]]


def test_pictures_are_found_by_step_and_name(client, root):
    assert client.get("/runs/shapes/samples").json() == [
        {"step": 10, "pictures": ["ema.png"]},
        {"step": 20, "pictures": ["ema.png"]},
    ]
    answer = client.get("/runs/shapes/samples/20/ema.png")
    assert answer.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(answer.content)).getpixel((0, 0)) == (20, 0, 0)
    assert client.get("/runs/shapes/vae/samples").json() == []


@pytest.mark.parametrize("kept", [0, 20, 60, -12])
def test_a_picture_that_is_torn_is_said_to_be_so_rather_than_shown_in_part(client, root, kept):
    file = root / "shapes" / "samples" / "step_00000020" / "ema.png"
    file.write_bytes(file.read_bytes()[:kept])
    answer = client.get("/runs/shapes/samples/20/ema.png")
    assert answer.status_code == 409 and answer.json()["error"] == "this picture cannot be read"
    assert client.get("/runs/shapes/samples/10/ema.png").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/runs/nothing/metrics",
        "/runs/../metrics",
        "/runs/%2e%2e/metrics",
        "/runs/shapes%2F..%2F..%2F/samples",
        "/runs/%00/metrics",
        f"/runs/{'x' * 5000}/samples",
        "/runs/shapes/samples/30/ema.png",
        "/runs/shapes/samples/20/raw.png",
        "/runs/shapes/samples/20/..%2F..%2F..%2F..%2Fsecret.png",
        "/runs//etc/samples/20/ema.png",
        f"/runs/shapes/samples/{'9' * 400}/ema.png",
    ],
)
def test_what_is_not_there_and_tricks_with_paths_are_404(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and set(answer.json()) == {"error", "field", "hint"}


@pytest.mark.parametrize("path", ["/runs/shapes/metrics?points={}", "/runs/shapes/samples/{}/ema.png"])
def test_a_number_too_long_to_be_read_is_said_in_our_words(client, path):
    answer = client.get(path.format("9" * 5000))
    assert answer.status_code == 422
    assert answer.json()["error"].endswith(" is a text of 5000 characters: expected a whole number of fewer digits")


def test_a_run_whose_process_was_killed_is_not_said_to_run(client, root):
    RunFolder(root / "killed").set_state(status="running", stage="LatentDiffusion")
    assert {view["name"]: view["status"] for view in client.get("/runs").json()}["killed"] == "stopped"


def a_state_that_is_none(run: Path) -> None:
    (run / "state.json").write_text('{"status": {}, "stage": "\\ud800", "max_steps": 1e400}')


def a_state_that_is_a_folder(run: Path) -> None:
    (run / "state.json").unlink()
    (run / "state.json").mkdir()


def metrics_that_are_a_folder(run: Path) -> None:
    (run / "metrics.csv").mkdir()


def a_picture_that_is_a_folder(run: Path) -> None:
    (run / "samples" / "step_00000001" / "ema.png").mkdir(parents=True)


def a_picture_that_is_gone(run: Path) -> None:
    (run / "samples" / "step_00000001").mkdir(parents=True)
    (run / "samples" / "step_00000001" / "ema.png").symlink_to("nowhere")


def a_picture_that_is_empty(run: Path) -> None:
    (run / "samples" / "step_00000001").mkdir(parents=True)
    (run / "samples" / "step_00000001" / "ema.png").touch()


def files_that_are_pipes(run: Path) -> None:
    (run / "samples" / "step_00000001").mkdir(parents=True)
    for name in ("metrics.csv", "samples/step_00000001/ema.png"):
        os.mkfifo(run / name)


def names_that_are_no_text(run: Path) -> None:
    (run / "samples" / "step_00000001").mkdir(parents=True)
    for name in ("samples/step_00000001/\udcff.png", "../\udcff"):
        (run / name).mkdir()
    (run / "../\udcff/state.json").write_text("{}")


@pytest.mark.parametrize(
    "damage",
    [
        a_state_that_is_none,
        a_state_that_is_a_folder,
        metrics_that_are_a_folder,
        a_picture_that_is_a_folder,
        a_picture_that_is_gone,
        a_picture_that_is_empty,
        files_that_are_pipes,
        names_that_are_no_text,
    ],
)
def test_a_damaged_run_hides_no_other_and_is_no_bug_of_ours(client, root, damage: Callable[[Path], None]):
    RunFolder(root / "odd").set_state(step=1)
    damage(root / "odd")
    assert {"shapes", "shapes/vae", "odd"} == {view["name"] for view in client.get("/runs").json()}
    for path in ("metrics", "samples", "samples/1/ema.png"):
        answer = client.get(f"/runs/odd/{path}")
        assert answer.status_code in (200, 404, 409) and str(root) not in answer.text, answer.text

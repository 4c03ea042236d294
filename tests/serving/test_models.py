"""GET /models and PUT /models/current: what there is to draw with, and changing it."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from serving import client_of, engine_of, picture, same, wait_until

from sdscratch.errors import ConfigError
from sdscratch.interop.diffusers_folder import UNET_WEIGHTS
from sdscratch.run_folder import RunFolder
from sdscratch.serving.app import create_app
from sdscratch.serving.models import Served, Shelf

WISH = {"prompt": "a red circle", "steps": 2, "seed": 1}


@pytest.fixture(scope="module")
def runs(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, one of a curriculum, one whose weights are damaged, one that is not finished."""
    root = tmp_path_factory.mktemp("shelf") / "runs"
    for name in ("one", "mini/p1", "damaged"):
        shutil.copytree(tiny_run.path, root / name)
    shutil.rmtree(root / "mini/p1" / "checkpoints")
    weights = root / "damaged" / "model" / UNET_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])
    (root / "unfinished" / "checkpoints").mkdir(parents=True)
    return root


@pytest.fixture
def client(runs: Path):
    with client_of(create_app(engine_of(runs / "one", runs))) as client:
        yield client


def current(client: TestClient) -> list[str]:
    return [model["id"] for model in client.get("/models").json() if model["current"]]


def test_the_shelf_is_the_named_model_and_every_finished_run(client):
    models = {model["id"]: model for model in client.get("/models").json()}
    checkpoints = {id for id in models if id.endswith(".ckpt")}
    assert set(models) - checkpoints == {"one", "mini/p1", "damaged"} and current(client) == ["one"]
    assert {id.partition("/")[0] for id in checkpoints} == {"one", "damaged"}
    assert {models[id]["kind"] for id in checkpoints} == {"checkpoint"}
    assert models["one"] == {"id": "one", "kind": "run", "weights": ["ema", "raw"], "current": True}
    assert models["mini/p1"]["weights"] == ["ema"]


def test_a_model_from_elsewhere_is_named_without_its_path(tiny_run, tmp_path, runs):
    folder = shutil.copytree(tiny_run.model_folder, tmp_path / "mine")
    entry = Shelf(str(folder), runs).first
    assert (entry.id, entry.kind, entry.weights) == ("mine", "folder", ["ema"])


def test_another_model_and_other_weights_draw_from_then_on(client):
    before = client.post("/generate", json=WISH).json()
    assert client.put("/models/current", json={"id": "one", "weights": "raw"}).json()["weights"] == ["raw", "ema"]
    raw = client.post("/generate", json=WISH).json()
    assert raw["weights"] == "raw" and raw["images"] != before["images"]
    assert client.put("/models/current", json={"id": "mini/p1"}).status_code == 200
    after = client.post("/generate", json=WISH).json()
    assert current(client) == ["mini/p1"] and after["model"] == "mini/p1"
    assert same(picture(after["image"]), picture(before["image"]))
    checkpoint = max(model["id"] for model in client.get("/models").json() if model["id"].startswith("one/checkpoints"))
    assert client.put("/models/current", json={"id": checkpoint, "weights": "raw"}).status_code == 200
    assert same(picture(client.post("/generate", json=WISH).json()["image"]), picture(raw["image"]))
    assert client.put("/models/current", json={"id": "mini/p1"}).status_code == 200
    refused = client.post("/generate", json={**WISH, "weights": "raw"})
    assert refused.status_code == 422 and refused.json()["field"] == "weights"


def test_a_model_that_cannot_be_loaded_leaves_the_old_one(client):
    for choice in ({"id": "damaged"}, {"id": "mini/p1", "weights": "raw"}):
        answer = client.put("/models/current", json=choice)
        assert answer.status_code == 409 and str(Path.cwd().anchor + "tmp") not in answer.text
    assert current(client) == ["one"] and client.post("/generate", json=WISH).status_code == 200


def test_two_cannot_be_loaded_at_once(client):
    with ThreadPoolExecutor(4) as callers:
        answers = [*callers.map(lambda _: client.put("/models/current", json={"id": "mini/p1"}).status_code, range(4))]
    assert set(answers) <= {200, 409} and 200 in answers
    assert current(client) == ["mini/p1"]


@pytest.mark.parametrize("id", ["nothing", "../one", "/etc", "unfinished", "hf:a/b", "one/../one", "a/b", "\x00"])
def test_only_what_is_on_the_shelf_can_be_asked_for(client, id):
    answer = client.put("/models/current", json={"id": id})
    assert answer.status_code == 404 and answer.json()["field"] == "id"


def test_weights_that_there_are_not_are_refused_before_anything_is_loaded(tiny_run, runs):
    entry = Shelf(str(tiny_run.model_folder), runs).first
    with pytest.raises(ConfigError, match="weights=raw, but model has ema only"):
        Served(entry, "raw", "cpu")


def test_a_model_that_is_gone_is_still_drawn_with_and_keeps_its_name(tiny_run, tmp_path, runs):
    folder = shutil.copytree(tiny_run.model_folder, tmp_path / "mine")
    with client_of(create_app(engine_of(folder, runs))) as client:
        shutil.rmtree(folder)
        assert current(client) == ["mine"] and str(tmp_path) not in client.get("/models").text
        assert client.post("/generate", json=WISH).json()["model"] == "mine"
        assert client.put("/models/current", json={"id": "mine"}).status_code == 409


def test_a_run_that_cannot_be_read_hides_no_other(runs, client):
    (runs / "odd" / "state.json").mkdir(parents=True)
    try:
        assert "mini/p1" in {model["id"] for model in client.get("/models").json()}
        assert client.put("/models/current", json={"id": "mini/p1"}).status_code == 200
    finally:
        shutil.rmtree(runs / "odd")


def test_memory_that_does_not_suffice_for_another_model_leaves_the_old_one(client, monkeypatch):
    def load(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("sdscratch.serving.models.TextToImage.from_pretrained", load)
    assert client.put("/models/current", json={"id": "mini/p1"}).status_code == 409
    assert current(client) == ["one"] and client.post("/generate", json=WISH).status_code == 200


def test_who_waits_while_the_model_changes_is_drawn_for_or_told_why_not(client):
    first, *wishes = [{**WISH, "steps": 30, "weights": weights} for weights in ("ema", "raw") * 2]
    with ThreadPoolExecutor(4) as callers:
        drawn = [callers.submit(client.post, "/generate", json={**first, "steps": 300})]
        wait_until(lambda: client.get("/health").json()["queue"] == 1)
        drawn += [callers.submit(client.post, "/generate", json=wish) for wish in wishes]
        wait_until(lambda: client.get("/health").json()["queue"] == 4)
        assert client.put("/models/current", json={"id": "mini/p1"}).status_code == 200  # it has no raw weights
        answers = [call.result().json() for call in drawn]
    assert {answer.get("model") for answer in answers if "images" in answer} == {"one", "mini/p1"}
    refused = [answer["error"] for answer in answers if "images" not in answer]
    assert refused and set(refused) == {"weights: this model has no raw ones"}

"""Jobs: the queue, what followers see, and how they are given up."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi.testclient import TestClient
from serving import ENDLESS, QUEUE, client_of, engine_of, wait_until

from sdscratch.serving.app import create_app
from sdscratch.serving.jobs import KEPT_BYTES, Job, JobBook
from sdscratch.serving.problems import Problem
from sdscratch.serving.schemas import Parameters

SHORT = {"prompt": "a red circle", "steps": 3, "seed": 1}
LONG_ONE = {**SHORT, "steps": ENDLESS}


def submit(client: TestClient, wish: dict[str, Any]) -> str:
    answer = client.post("/jobs", json=wish)
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


def events(client: TestClient, id: str) -> list[tuple[str, dict[str, Any]]]:
    text = client.get(f"/jobs/{id}/events").text
    blocks = [dict(line.split(": ", 1) for line in block.splitlines()) for block in text.strip().split("\n\n")]
    return [(block["event"], json.loads(block["data"])) for block in blocks if "event" in block]


@pytest.fixture(autouse=True)
def nothing_left(client) -> Any:
    yield
    wait_until(lambda: client.get("/health").json()["queue"] == 0)


def test_a_job_ends_with_the_pictures_that_generate_gives(client):
    id = submit(client, SHORT)
    wait_until(lambda: client.get(f"/jobs/{id}").json()["status"] == "done")
    job, drawn = client.get(f"/jobs/{id}").json(), client.post("/generate", json=SHORT).json()
    assert job["images"] == drawn["images"] and job["step"] == job["steps"] == 3 and job["error"] is None
    assert job["parameters"] == {name: drawn[name] for name in job["parameters"]}


def test_whoever_follows_sees_the_queue_the_steps_with_previews_and_the_end(client):
    first = submit(client, {**SHORT, "steps": 150})
    second = submit(client, {**SHORT, "steps": 100, "n": 2})
    seen = events(client, second)
    names = [name for name, _ in seen]
    assert names == sorted(names, key=["queue", "step", "done"].index) and names[0] == "queue" and names[-1] == "done"
    assert seen[0][1] == {"position": 1}
    steps = [about["step"] for name, about in seen if name == "step"]
    assert (
        steps == sorted(steps) and len(set(steps)) > 5 and {about["steps"] for n, about in seen if n == "step"} == {100}
    )
    previews = [about["preview"] for name, about in seen if name == "step" and about["preview"]]
    assert previews and len(set(previews)) == len(previews) and previews[0].startswith("data:image/webp;base64,")
    assert seen[-1][1] == client.get(f"/jobs/{second}").json()
    assert [name for name, _ in events(client, first)] == ["done"]  # long over


def test_a_waiting_job_is_cancelled_at_once_and_those_behind_it_move_up(client):
    running, waiting, last = (submit(client, wish) for wish in (LONG_ONE, SHORT, SHORT))
    assert [client.get(f"/jobs/{id}").json()["position"] for id in (waiting, last)] == [1, 2]
    assert client.delete(f"/jobs/{waiting}").json()["status"] == "cancelled"
    assert client.get(f"/jobs/{last}").json()["position"] == 1
    client.delete(f"/jobs/{running}")
    wait_until(lambda: client.get(f"/jobs/{last}").json()["status"] == "done")
    assert client.get(f"/jobs/{waiting}").json()["images"] == []


def test_a_running_job_is_cancelled_between_two_steps(client):
    id = submit(client, LONG_ONE)
    wait_until(lambda: client.get(f"/jobs/{id}").json()["step"] > 2)
    with ThreadPoolExecutor(1) as thread:
        followed = thread.submit(events, client, id)
        client.delete(f"/jobs/{id}")
        assert followed.result(60)[-1] == ("cancelled", {})
    wait_until(lambda: client.get("/health").json()["queue"] == 0)
    assert client.delete(f"/jobs/{id}").json()["status"] == "cancelled"  # once more does not matter
    assert client.get(f"/jobs/{id}").json()["step"] < ENDLESS


def test_a_full_queue_says_when_to_try_again(client):
    running = submit(client, LONG_ONE)
    wait_until(lambda: client.get(f"/jobs/{running}").json()["status"] == "running")
    waiting = [submit(client, SHORT) for _ in range(QUEUE)]
    for path in ("/jobs", "/generate"):
        answer = client.post(path, json=SHORT)
        assert answer.status_code == 429 and 1 <= int(answer.headers["Retry-After"]) <= 600
        assert set(answer.json()) == {"error", "field", "hint"}
    for id in (running, *waiting):
        client.delete(f"/jobs/{id}")
    assert client.post("/generate", json=SHORT).status_code == 200


def test_every_caller_gets_the_picture_of_its_own_seed(client, pipe):
    wishes = [{**SHORT, "seed": seed, "sampler": ["euler", "ddpm"][seed % 2], "n": 1 + seed % 3} for seed in range(4)]
    alone = [client.post("/generate", json=wish).json()["images"] for wish in wishes]
    with ThreadPoolExecutor(4) as callers:
        together = [*callers.map(lambda wish: client.post("/generate", json=wish).json()["images"], wishes * 3)]
    assert together == alone * 3


def test_a_drawing_that_fails_is_a_500_without_a_word_of_why_and_the_next_is_right(engine, client, monkeypatch):
    good = client.post("/generate", json=SHORT).json()["images"]
    pipe = engine.served.pipe

    def broken(latents):
        raise RuntimeError("secret")

    monkeypatch.setattr(pipe.encoders, "decode", broken)
    answer, id = client.post("/generate", json=SHORT), submit(client, SHORT)
    failed = events(client, id)[-1]
    monkeypatch.undo()
    assert answer.status_code == 500 and "secret" not in answer.text
    assert failed == ("failed", answer.json())
    assert client.post("/generate", json=SHORT).json()["images"] == good


def test_a_model_that_is_being_loaded_or_has_stopped_draws_nothing(tiny_run):
    engine = engine_of(tiny_run.path, tiny_run.path.parent)
    with client_of(create_app(engine)) as client:
        engine._served, loaded = None, engine._served  # as it is before its first model is there
        engine.status = "loading"
        for path in ("/health", "/config", "/models"):
            assert client.get(path).status_code == 503, path
        assert client.post("/generate", json=SHORT).headers["Retry-After"] == "2"
        engine._served, engine.status = loaded, "ready"
        waiting = [submit(client, wish) for wish in (LONG_ONE, SHORT)]
        wait_until(lambda: client.get(f"/jobs/{waiting[0]}").json()["status"] == "running")
        engine.stop_soon(at_once=True)
        wait_until(lambda: client.get("/health").json()["status"] == "stopping")
        wait_until(lambda: client.get(f"/jobs/{waiting[0]}").json()["status"] == "cancelled")
        assert events(client, waiting[1])[-1][0] == "failed"
        answer = client.post("/generate", json=SHORT)
        assert answer.status_code == 503 and "stopping" in answer.json()["error"]
        assert client.get("/health").status_code == 503


@pytest.mark.parametrize("method", ["GET", "DELETE"])
@pytest.mark.parametrize("id", ["x", "%2e%2e", "%00", "a" * 5000])
def test_a_job_that_there_is_not_is_404(client, method, id):
    assert client.request(method, f"/jobs/{id}").status_code in (404, 405)
    assert client.get(f"/jobs/{id}/events").status_code == 404


PARAMETERS = Parameters(
    prompt="a",
    negative_prompt="",
    steps=1,
    cfg_scale=1,
    guidance_rescale=0,
    sampler="euler",
    seed=0,
    width=8,
    height=8,
    n=1,
    weights="ema",
)


def test_the_book_forgets_the_oldest_that_ended_and_none_that_lives():
    book = JobBook()
    alive = Job(PARAMETERS, 0)
    book.enter(alive)
    ended = [Job(PARAMETERS, 0) for _ in range(6)]
    for job in ended:
        job.finish(["x" * (KEPT_BYTES // 4)], [], 1.0)
        book.enter(job)
    assert book.find(alive.id) is alive and book.find(ended[-1].id) is ended[-1]
    with pytest.raises(Problem):
        book.find(ended[0].id)
    assert sum(job.size for job in book._jobs.values()) <= KEPT_BYTES * 5 / 4


def test_drawing_is_one_thread(client, engine):
    before = {thread.name for thread in threading.enumerate() if thread.name.startswith("drawing")}
    with ThreadPoolExecutor(4) as callers:
        [*callers.map(lambda seed: client.post("/generate", json={**SHORT, "seed": seed}), range(4))]
    assert {thread.name for thread in threading.enumerate() if thread.name.startswith("drawing")} == before

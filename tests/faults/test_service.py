"""The service, as a process: told to stop while it draws, twice, while it loads; and started on what is damaged."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness import ForkServer, Running, wait_until

from sdscratch.interop.diffusers_folder import UNET_WEIGHTS
from sdscratch.run_folder import RunFolder

pytest.importorskip("fastapi")

WISH = {"prompt": "a red circle", "seed": 1}
LONG_ONE = {**WISH, "steps": 1000}
SERVING = re.compile(r"serving \S+ at (http://\S+)\n")


def serve(server: ForkServer, model: Path, *overrides: str) -> Running:
    words = [f"model={model}", f"paths.runs={model.parent}", "port=0", "device=cpu", "limits.max_steps=1000"]
    return server.start(["serve", *words, *overrides])


def address_of(running: Running) -> str:
    wait_until(lambda: SERVING.search(running.output()) is not None)
    return SERVING.search(running.output())[1]


def in_background(address: str, wish: dict[str, Any]) -> tuple[threading.Thread, list[httpx.Response]]:
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(httpx.post(f"{address}/generate", json=wish, timeout=300)))
    thread.start()
    return thread, answers


def wait_for_jobs(address: str, number: int) -> None:
    wait_until(lambda: httpx.get(f"{address}/health").json()["queue"] == number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_service_that_is_told_to_stop_ends_the_drawing_and_sends_away_who_waits(server, tiny_run, number, code):
    running = serve(server, tiny_run.path, "grace=60")
    address = address_of(running)
    drawing = in_background(address, {**WISH, "steps": 400})
    wait_for_jobs(address, 1)
    waiting = in_background(address, WISH)
    wait_for_jobs(address, 2)
    running.kill(number, "parent")
    for thread, _ in (drawing, waiting):
        thread.join()
    attempt = running.wait()
    assert attempt.rc == code and "Traceback" not in attempt.output, attempt.output
    assert drawing[1][0].status_code == 200 and len(drawing[1][0].json()["images"]) == 1
    assert waiting[1][0].status_code == 503 and "stopping" in waiting[1][0].json()["error"]


@pytest.mark.parametrize("again", [False, True], ids=["its time is over", "told twice"])
def test_a_drawing_that_takes_too_long_is_given_up(server, tiny_run, again):
    running = serve(server, tiny_run.path, f"grace={60 if again else 0}")
    address = address_of(running)
    thread, answers = in_background(address, {**LONG_ONE, "n": 8})
    wait_for_jobs(address, 1)
    running.kill(signal.SIGTERM, "parent")
    if again:
        time.sleep(0.5)
        running.kill(signal.SIGTERM, "parent")
    begin = time.perf_counter()
    attempt = running.wait()
    assert attempt.rc == 143 and time.perf_counter() - begin < 30
    assert "Traceback" not in attempt.output
    thread.join()
    assert [answer.status_code for answer in answers] in ([503], [])  # told twice, it may hang up on who waits


def test_a_service_that_is_told_to_stop_while_it_loads_does(server, tiny_run):
    running = serve(server, tiny_run.path)
    time.sleep(0.5)
    running.kill(signal.SIGTERM, "parent")
    assert running.wait(60).rc in (143, -signal.SIGTERM)


def test_names_sites_and_the_token_are_those_of_the_settings(server, tiny_run):
    words = [f"model={tiny_run.path}", f"paths.runs={tiny_run.path.parent}", "port=0", "device=cpu"]
    words += ["hosts=[pictures.example.org]", "cors=[https://example.org]", "fixed_model=true"]
    running = server.start(["serve", *words], env={"SDSCRATCH_TOKEN": "secret"})
    with httpx.Client(base_url=address_of(running), headers={"Authorization": "Bearer secret"}) as caller:
        asked = {
            name: caller.get("/models", headers={"Host": name}) for name in ("pictures.example.org", "evil.example")
        }
        assert [answer.status_code for answer in asked.values()] == [200, 421]
        assert caller.get("/models", headers={"Authorization": "Bearer other"}).status_code == 401
        origin = caller.get("/health", headers={"Origin": "https://example.org"}).headers["Access-Control-Allow-Origin"]
        assert origin == "https://example.org"
        assert caller.put("/models/current", json={"id": tiny_run.path.name}).status_code == 403
    running.kill(signal.SIGTERM, "parent")
    assert running.wait().rc == 143


def _cut(run: RunFolder) -> None:
    weights = run.model_folder / UNET_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1000])


def _lost(run: RunFolder) -> None:
    shutil.rmtree(run.model_folder / "vae")


def _unfinished(run: RunFolder) -> None:
    shutil.rmtree(run.model_folder)


def _foreign(run: RunFolder) -> None:
    (run.model_folder / "unet" / "config.json").write_text('{"_class_name": "os.system"}')


@pytest.mark.parametrize("damage", [_cut, _lost, _unfinished, _foreign])
def test_a_service_does_not_start_on_a_damaged_model(server, tiny_run, copied, damage):
    run = copied(tiny_run)
    damage(run)
    attempt = serve(server, run.path).wait()
    assert attempt.rc == 2 and "Traceback" not in attempt.output, attempt.output
    assert [line for line in attempt.output.splitlines() if line.startswith("sdscratch: ")]
    assert "serving" not in attempt.output


def test_a_port_that_is_taken_and_settings_that_cannot_be_are_told_before_anything_is_loaded(server, tiny_run):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        words = [f"port={other.getsockname()[1]}", "port=99999", "host=nowhere.invalid", "limits.max_steps=0"]
        for word in [*words, "queue=0", "weights=emma", "dtype=fp8", "limits.max_guidance=.nan"]:
            attempt = serve(server, tiny_run.path, word).wait()
            assert attempt.rc == 2 and "Traceback" not in attempt.output, f"{word}: {attempt.output}"
            assert len([line for line in attempt.output.splitlines() if line.startswith("sdscratch: ")]) == 1

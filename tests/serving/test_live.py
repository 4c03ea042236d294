"""On real sockets: callers that hang up, crawl, or never stop talking."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from random import Random
from urllib.parse import urlsplit

import pytest
from serving import ENDLESS, LONG, on_loop, wait_until

from sdscratch.serving import guard
from sdscratch.serving import server as server_module

WISH = {"prompt": "a red circle", "steps": 3, "seed": 1}
HANG_UPS = 100 if LONG else 10
CRAWLERS = 200 if LONG else 40
PATIENCE = 1.0


def connect(server) -> socket.socket:
    address = urlsplit(server.address)
    return socket.create_connection((address.hostname, address.port), timeout=10)


def request_of(wish: dict) -> bytes:
    body = json.dumps(wish).encode()
    head = (
        f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def answer_to(connection: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


# Hanging up


def test_whoever_hangs_up_cancels_within_a_step(server, caller):
    """And gives the device free for the next."""
    times, steps_after = Random(0), []
    engine = server.engine
    for _ in range(HANG_UPS):
        with connect(server) as connection:
            connection.sendall(request_of({**WISH, "steps": ENDLESS}))
            wait_until(lambda: engine._running is not None)
            job = on_loop(engine, lambda: engine._running)
            time.sleep(times.uniform(0, 0.1))
        wait_until(lambda job=job: job.ended)
        at_cancel = job.step
        wait_until(lambda: engine.jobs == 0)
        assert job.status == "cancelled"
        steps_after.append(job.step - at_cancel)
    assert max(steps_after) == 0  # of a cancelled job no further step is reported
    assert caller.post("/generate", json=WISH).status_code == 200
    print(f"{HANG_UPS} of {HANG_UPS} callers that hung up were noticed")


def test_whoever_hangs_up_while_waiting_leaves_the_queue(server, caller):
    engine = server.engine
    running = caller.post("/jobs", json={**WISH, "steps": ENDLESS}).json()["id"]
    with connect(server) as connection:
        connection.sendall(request_of(WISH))
        wait_until(lambda: engine.jobs == 2)
    wait_until(lambda: engine.jobs == 1)
    caller.delete(f"/jobs/{running}")
    wait_until(lambda: engine.jobs == 0)


def test_a_job_outlives_whoever_followed_it(server, caller):
    id = caller.post("/jobs", json={**WISH, "steps": 50}).json()["id"]
    with caller.stream("GET", f"/jobs/{id}/events") as events:
        next(events.iter_lines())
    wait_until(lambda: caller.get(f"/jobs/{id}").json()["status"] == "done")


# Crawling


@pytest.fixture
def impatient(monkeypatch) -> Iterator[float]:
    """With a second to say what one wants."""
    monkeypatch.setattr(guard, "READ_SECONDS", PATIENCE)
    monkeypatch.setattr(server_module, "READ_SECONDS", PATIENCE)
    yield PATIENCE

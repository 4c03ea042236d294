"""The tiny run as a service: in this process for most tests, on a real socket for those about connections."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image

from sdscratch.serving.engine import Engine
from sdscratch.serving.limits import Limits
from sdscratch.serving.models import Shelf
from sdscratch.serving.server import Server

LONG = os.environ.get("SDS_SOAK") == "long"
"""Whether tests take the long form, as `make soak` asks for."""

ENDLESS = 1000
"""Steps that take the tiny model some seconds: time enough to look at a drawing, or to give it up."""

QUEUE = 4
PNG = "data:image/png;base64,"


def engine_of(model: Path, runs: Path, limits: Mapping[str, Any] | None = None, **settings: Any) -> Engine:
    defaults = {"weights": "ema", "device": "cpu", "dtype": "fp32", "queue": QUEUE, "grace": 5.0}
    return Engine(
        Shelf(str(model), runs), Limits(**{"max_steps": ENDLESS, **(limits or {})}), **{**defaults, **settings}
    )


@contextmanager
def client_of(app: FastAPI) -> Iterator[TestClient]:
    """In this process, when its model is loaded."""
    with TestClient(app, raise_server_exceptions=False) as client:
        wait_until(lambda: client.get("/health").status_code == 200)
        yield client


@contextmanager
def live(app: FastAPI, engine: Engine, grace: float = 5.0) -> Iterator[Server]:
    """On a socket, in a thread."""
    server = Server(app, engine, "127.0.0.1", 0, grace)
    thread = threading.Thread(target=server.answer)
    thread.start()
    try:
        wait_until(lambda: server.said)
        yield server
    finally:
        server.should_exit = True
        thread.join(30)


def wait_until(happened: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"it did not happen within {seconds} s"
        time.sleep(0.01)


def on_loop(engine: Engine, what: Callable[[], Any]) -> Any:
    """Look at the engine from where it lives."""

    async def look() -> Any:
        return what()

    return asyncio.run_coroutine_threadsafe(look(), engine._loop).result(60)


def picture(uri: str) -> Image.Image:
    """The PNG of a data URI."""
    assert uri.startswith(PNG)
    return Image.open(io.BytesIO(b64decode(uri.removeprefix(PNG))))


def same(a: Image.Image, b: Image.Image) -> bool:
    """To the last bit."""
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))

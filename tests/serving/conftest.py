"""What tests of the service share."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from fastapi.testclient import TestClient
from serving import client_of, engine_of, live

from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder
from sdscratch.serving.app import create_app
from sdscratch.serving.engine import Engine
from sdscratch.serving.server import Server


@pytest.fixture(scope="session")
def pipe(tiny_run: RunFolder) -> TextToImage:
    """What the service draws with, to be asked directly."""
    return TextToImage.from_pretrained(tiny_run.path, device="cpu")


@pytest.fixture(scope="module")
def engine(tiny_run: RunFolder) -> Engine:
    return engine_of(tiny_run.path, tiny_run.path.parent)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[TestClient]:
    with client_of(create_app(engine)) as client:
        yield client


@pytest.fixture(scope="module")
def run(tiny_run: RunFolder) -> RunFolder:
    """What `server` serves; a file whose tests write into it says another."""
    return tiny_run


@pytest.fixture(scope="module")
def server(run: RunFolder) -> Iterator[Server]:
    engine = engine_of(run.path, run.path.parent)
    with live(create_app(engine), engine) as server:
        yield server


@pytest.fixture
def caller(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address, timeout=60) as caller:
        yield caller

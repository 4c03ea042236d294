"""Requests that schemathesis makes from the API's own description, right and wrong: none is answered with 500."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import hypothesis
import pytest
import requests
from hypothesis import HealthCheck, Phase
from serving import LONG, engine_of, live

from sdscratch.run_folder import RunFolder
from sdscratch.serving.app import create_app
from sdscratch.serving.server import Server

schemathesis = pytest.importorskip("schemathesis")

CASES = 5000 if LONG else 150
VARIED = 12  # kinds of requests that have anything in them to vary
FEW = {"max_steps": 4, "max_side": 64, "max_n": 2}


@pytest.fixture(scope="module")
def server(tiny_run: RunFolder) -> Iterator[Server]:
    """A service whose largest drawing is soon done, and that lets everyone in."""
    engine = engine_of(tiny_run.path, tiny_run.path.parent, FEW, queue=CASES)
    with live(create_app(engine), engine) as server:
        yield server


def test_the_description_is_whole(caller):
    described = caller.get("/openapi.json").json()
    operations = {(path, method) for path, methods in described["paths"].items() for method in methods}
    assert operations >= {
        ("/generate", "post"),
        ("/jobs", "post"),
        ("/jobs/{id}", "get"),
        ("/jobs/{id}", "delete"),
        ("/jobs/{id}/events", "get"),
        ("/health", "get"),
        ("/config", "get"),
        ("/models", "get"),
        ("/models/current", "put"),
    }
    wish = described["components"]["schemas"]["Wish"]
    assert wish["examples"] and wish["additionalProperties"] is False
    example = {**wish["examples"][0], "steps": 2}
    assert caller.post("/generate", json=example).status_code == 200


def test_no_request_that_the_description_suggests_is_answered_with_500(server):
    answers: Counter[int] = Counter()
    operations = [
        result.ok() for result in schemathesis.openapi.from_url(f"{server.address}/openapi.json").get_all_operations()
    ]
    modes = (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE)
    kinds = [(operation, mode) for operation in operations for mode in modes]
    session = requests.Session()
    for operation, mode in kinds:

        def answered(case) -> None:
            answer = case.call(base_url=server.address, session=session)
            answers[answer.status_code] += 1
            assert answer.status_code < 500, f"{case.as_curl_command()}: {answer.text}"

        tried = hypothesis.settings(
            max_examples=-(-CASES // VARIED),
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )(hypothesis.given(case=operation.as_strategy(generation_mode=mode))(answered))
        try:
            tried()
        except hypothesis.errors.Unsatisfiable:  # nothing can be wrong in a request that has nothing in it
            assert mode is schemathesis.GenerationMode.NEGATIVE
    print(f"{answers.total()} cases: {dict(sorted(answers.items()))}")

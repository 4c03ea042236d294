"""What stands before the API: bodies, the token, other sites, headers."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient
from serving import client_of, engine_of
from starlette.responses import Response

from sdscratch.serving.app import create_app
from sdscratch.serving.guard import MAX_BODY, KnownName

TOKEN = "a long secret"
SITE = "https://example.org"


@pytest.fixture(scope="module")
def closed(tiny_run):
    """With a token, a page elsewhere that may call, and its model fixed."""
    engine = engine_of(tiny_run.path, tiny_run.path.parent)
    with client_of(create_app(engine, TOKEN, [SITE], fixed=True)) as client:
        yield client


def test_every_answer_tells_browsers_to_be_careful(client):
    for answer in (client.get("/health"), client.get("/nothing"), client.post("/generate", content=b"x" * 70_000)):
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert "unsafe" not in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "Server" not in answer.headers


def test_also_where_we_have_failed_and_its_traceback_is_for_the_log(engine, client, monkeypatch, caplog):
    def fails() -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(engine, "health", fails)
    answer = client.get("/health")
    assert (
        answer.status_code == 500 and set(answer.json()) == {"error", "field", "hint"} and "secret" not in answer.text
    )
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "secret" in caplog.text


@pytest.mark.parametrize("size", [MAX_BODY + 1, 20 * MAX_BODY])
@pytest.mark.parametrize("path", ["/generate", "/jobs", "/health", "/nothing"])
def test_a_body_that_is_too_large_is_413(client, path, size):
    answer = client.post(path, content=b"x" * size)
    assert answer.status_code == 413 and str(size) in answer.json()["error"]


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer \xff"]
)
def test_without_the_token_nothing_is_drawn_or_told(closed, given):
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    for method, path in (("POST", "/generate"), ("GET", "/models"), ("GET", "/jobs/x"), ("GET", "/openapi.json")):
        answer = closed.request(method, path, headers=headers)
        assert answer.status_code == 401 and answer.headers["WWW-Authenticate"] == "Bearer"
        assert TOKEN not in answer.text


def test_with_the_token_one_may(closed):
    closed.headers["Authorization"] = f"Bearer {TOKEN}"
    assert closed.post("/generate", json={"prompt": "a", "steps": 1}).status_code == 200
    assert closed.get("/models").status_code == 200
    del closed.headers["Authorization"]


def test_health_and_config_are_open_so_that_a_page_can_ask_for_the_token(closed):
    assert closed.get("/health").status_code == 200
    assert closed.get("/config").json()["auth"] is True


def test_pages_of_other_sites_may_call_only_where_they_are_named(client, closed):
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    for origin, allowed in ((SITE, SITE), ("https://evil.example", None), ("null", None)):
        answer = closed.options("/generate", headers={"Origin": origin, **asked})
        assert answer.headers.get("Access-Control-Allow-Origin") == allowed
        assert client.get("/health", headers={"Origin": origin}).headers.get("Access-Control-Allow-Origin") is None


HERE = ["localhost", "LOCALHOST:8000", "127.0.0.1:8000", "0.0.0.0:8000", "[::1]:8000"]
STRANGE = [
    "evil.example",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[",
    "0x7f.1",
    "pictures.example.org:1",
]


@pytest.mark.parametrize(
    ("hosts", "reached_at", "known", "refused"),
    [
        ([], "127.0.0.1", HERE, STRANGE),
        ([], "::ffff:127.0.0.1", HERE, STRANGE),
        ([], "10.0.0.1", [*HERE, *STRANGE], []),
        (["Pictures.example.org"], "10.0.0.1", [*HERE, "pictures.example.org", "PICTURES.example.org:1"], STRANGE[:-1]),
        (["pictures.example.org"], "127.0.0.1", [*HERE, "pictures.example.org"], STRANGE[:-1]),
    ],
)
def test_on_this_machine_the_service_answers_to_localhost_and_the_names_it_was_given(hosts, reached_at, known, refused):
    """A page of a stranger that has pointed its own name at this machine says that name."""

    async def app(scope, receive, send):
        await Response(status_code=204)(scope, receive, send)

    guarded = KnownName(app, hosts)

    async def reached(scope, receive, send):
        await guarded({**scope, "server": (reached_at, 8000)}, receive, send)

    client = TestClient(reached)
    answers = {name: client.get("/", headers={"Host": name}) for name in (*known, *refused)}
    wanted = dict.fromkeys(known, 204) | dict.fromkeys(refused, 421)
    assert {name: answer.status_code for name, answer in answers.items()} == wanted
    assert all(answers[name].json()["field"] == "Host" for name in refused)


def test_a_fixed_model_stays(closed, tiny_run):
    headers = {"Authorization": f"Bearer {TOKEN}"}
    answer = closed.put("/models/current", json={"id": tiny_run.path.name}, headers=headers)
    assert answer.status_code == 403

"""Asking the web, of a server of this machine that does everything wrong that servers do."""

from __future__ import annotations

import asyncio
import logging
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from web_server import WebServer

from sdscratch.errors import ConfigError
from sdscratch.prepare.download.web import Manners, Web, harmless
from sdscratch.prepare.refusal import Refused

BODY = b"\x89PNG" + bytes(range(256)) * 40
PATIENT = {"read_timeout": 20.0, "total_timeout": 20.0, "backoff": 0.01, "max_bytes": 100_000, "allow_private": True}
HASTY = {"/stall": {"read_timeout": 0.3}, "/drip": {"total_timeout": 0.6}}  # by path


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer({"a.png": ("image/png", BODY), "ü b.png": ("image/png", b"umlaut")}) as server:
        yield server


Ask = Callable[..., bytes | tuple[str, str]]


@pytest.fixture
def ask(server: WebServer) -> Ask:
    """`ask("/path", retries=1)`: the body, or the reason and the detail of its refusal."""

    def ask(path: str, **manners: object) -> bytes | tuple[str, str]:
        return asyncio.run(
            _ask(
                server.url + path if path.startswith("/") else path,
                Manners(**{**PATIENT, **HASTY.get(path, {}), **manners}),
            )
        )

    return ask


async def _ask(url: str, manners: Manners) -> bytes | tuple[str, str]:
    async def use(body: bytes) -> bytes:
        return body

    async with Web(manners) as web:
        try:
            return await web.get(url, use)
        except Refused as refused:
            return refused.reason, refused.detail


@pytest.mark.parametrize(
    "path",
    ["/img/a.png", "/untyped", "/gzip", "/cookie", "/to//img/a.png", "/to//to//img/a.png", "/flaky/2/x", "/wait/0/x"],
)
def test_a_picture_comes_whole_also_by_detours(ask, path):
    assert ask(path) == BODY


def test_urls_need_not_be_ascii(ask, server):
    server.files["%C3%BC%20b.png"] = ("image/png", b"umlaut")
    assert ask("/img/ü b.png") == b"umlaut"


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "404"),
        ("/status/410", "410"),
        ("/status/403", "403"),
        ("/status/204", "204"),
        ("/status/304", "304"),
        ("/status/500", "500"),
        ("/flaky/9/y", "503"),
        ("/robots/noai", "opted out"),
        ("/robots/nofollow,+noindex", "opted out"),
        ("/robots/sdscratch:+noimageindex", "opted out"),
        ("/html", "wrong type"),
        ("/loop", "too many redirects"),
        ("/to/file:///etc/passwd", "not http"),
        ("/to/ftp://127.0.0.1/a", "not http"),
        ("/stall", "timeout"),
        ("/drip", "timeout"),
        ("/reset", "connection failed"),
        ("/cut", "connection failed"),
        ("/noise", "connection failed"),
        ("/huge", "too large"),
        ("/endless", "too large"),
        ("/bomb", "too large"),
        ("http://no-such-host.invalid/", "unknown host"),
        (f"http://{'a' * 70}.example/", "unknown host"),
        ("http://127.0.0.1:1/", "connection failed"),
        ("file:///etc/passwd", "not http"),
        ("data:image/png;base64,AAAA", "not http"),
        ("ftp://127.0.0.1/a.png", "not http"),
        ("http://", "bad URL"),
        ("http://[::1", "bad URL"),
        ("http://a:b:c/", "bad URL"),
        ("http://host:99999999/", "bad URL"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(ask, path, reason):
    answer = ask(path, retries=0)
    assert isinstance(answer, tuple) and answer[0] == reason


def test_a_directive_for_another_robot_is_not_for_us(ask):
    assert ask("/robots/otherbot:+noindex") == BODY
    assert ask("/robots/otherbot:+noindex", user_agent="OtherBot/1.0 (+mail)") == ("opted out", "noindex")


@pytest.mark.parametrize(
    ("path", "times"),
    [
        ("status/404", 1),
        ("status/410", 1),
        ("robots/noai", 1),
        ("html", 1),
        ("status/500", 3),
        ("stall", 3),
        ("cut", 3),
    ],
)
def test_only_failures_that_may_pass_are_tried_again(ask, server, path, times):
    server.asked.clear()
    ask(f"/{path}", retries=2)
    assert server.asked[f"/{path}"] == times


def test_a_server_that_asks_for_patience_gets_it_within_limits(ask, server):
    start = time.monotonic()
    assert ask("/wait/1/once") == BODY and time.monotonic() - start >= 1
    assert ask("/wait/60/once", longest_wait=30)[0] == "429"
    assert server.asked["/wait/60/once"] == 1


def test_each_retry_waits_twice_as_long(ask):
    start = time.monotonic()
    ask("/status/503", retries=2, backoff=0.15)
    assert time.monotonic() - start >= 0.45


# Where connections lead


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::ffff:127.0.0.1]", "0.0.0.0"]
)
def test_private_addresses_are_refused_in_every_spelling_and_never_asked(ask, server, host):
    server.asked.clear()
    answer = ask(f"http://{host}:{server.port}/img/a.png", allow_private=False)
    assert answer[0] in ("private address", "unknown host") and not server.asked
    if host in ("127.0.0.1", "localhost"):
        assert answer[0] == "private address"


def test_a_public_name_that_leads_to_a_private_address_is_refused(ask, server, monkeypatch):
    real = socket.getaddrinfo

    def rebound(host, *arguments, **named):
        return real("127.0.0.1" if host == "pictures.example" else host, *arguments, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebound)
    url = f"http://pictures.example:{server.port}/img/a.png"
    assert ask(url) == BODY  # the name works
    assert ask(url, allow_private=False)[0] == "private address"


def test_a_redirect_to_a_private_address_is_refused(ask, server, monkeypatch):
    from sdscratch.prepare.download import addresses

    monkeypatch.setattr(
        addresses, "is_public", lambda address: address == "127.0.0.1"
    )  # the server stands for the internet
    server.asked.clear()
    assert ask(f"/to/http://127.0.0.2:{server.port}/img/a.png", allow_private=False)[0] == "private address"
    assert "/img/a.png" not in server.asked
    assert ask("/to//img/a.png", allow_private=False) == BODY


def test_the_link_is_closed_even_where_private_addresses_are_open(ask, monkeypatch):
    connected = list[str]()
    monkeypatch.setattr("httpcore.AnyIOBackend.connect_tcp", lambda self, host, *_: connected.append(host))
    assert ask("http://169.254.169.254/latest/meta-data")[0] == "private address" and not connected


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl, for a certificate")
def test_certificates_are_checked_against_the_name_that_was_asked_for(ask, tmp_path, monkeypatch):
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    words = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(["openssl", *words, "-out", certificate, "-keyout", key], check=True, capture_output=True)
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(certificate, key)
    with WebServer({"a.png": ("image/png", BODY)}, tls=of_server) as server:
        urls = [f"https://{host}:{server.port}/img/a.png" for host in ("localhost", "127.0.0.1")]
        assert [ask(url, retries=0)[0] for url in urls] == ["connection failed"] * 2  # nobody vouches for it
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr("httpx.create_ssl_context", lambda **_: trusting)
        assert ask(urls[0]) == BODY and ask(urls[1], retries=0)[0] == "connection failed"


# Manners


async def _ask_all(urls: list[str], manners: Manners) -> list[bytes]:
    async def use(body: bytes) -> bytes:
        return body

    async with Web(manners) as web:
        return await asyncio.gather(*(web.get(url, use) for url in urls))


@pytest.mark.parametrize(("settings", "most"), [({"per_host": 3}, 3), ({"concurrency": 2, "per_host": 50}, 2)])
def test_no_more_requests_are_open_than_allowed_in_all_and_to_one_host(settings, most):
    with WebServer({"a.png": ("image/png", BODY)}, delay=0.02) as server:
        bodies = asyncio.run(_ask_all([f"{server.url}/img/a.png"] * 20, Manners(**{**PATIENT, **settings})))
        assert bodies == [BODY] * 20 and server.most_at_once == most


def test_a_slow_host_does_not_keep_others_waiting():
    async def slow_ones_that_came_before_the_quick_one(slow: str, quick: str) -> int:
        async def use(body: bytes) -> None: ...

        async with Web(Manners(**{**PATIENT, "concurrency": 4, "per_host": 2})) as web:
            waiting = [asyncio.create_task(web.get(slow, use)) for _ in range(8)]
            await asyncio.sleep(0)
            await web.get(quick, use)
            came = sum(task.done() for task in waiting)
            await asyncio.gather(*waiting)
            return came

    files = {"a.png": ("image/png", BODY)}
    with WebServer(files, delay=0.3) as slow, WebServer(files) as quick:
        urls = f"http://localhost:{slow.port}/img/a.png", f"{quick.url}/img/a.png"
        assert asyncio.run(slow_ones_that_came_before_the_quick_one(*urls)) <= 4


def test_no_cookie_is_kept_and_no_password_is_logged_or_sent_on(ask, server, caplog):
    caplog.set_level(logging.DEBUG)
    there = server.url.removeprefix("http://")
    assert ask(f"http://me:pa55word@{there}/cookie") == BODY
    assert "Authorization: Basic" in server.heads["/cookie"]
    assert ask(f"http://me:pa55word@{there}/to/http://localhost:{server.port}/img/a.png") == BODY
    assert "uthorization" not in server.heads["/img/a.png"] and "ookie" not in server.heads["/img/a.png"]
    assert "pa55word" not in caplog.text


@pytest.mark.parametrize(
    ("url", "written"),
    [
        ("https://me:pa55word@host/a@b?c@d", "https://host/a@b?c@d"),
        ("http:me:pa55word@host/", "http:host/"),
        (" HTTP:\\\\me:pa55word@host", " HTTP:\\\\host"),
        ("me:pa55word@host", "me:host"),
        ("http://host/a@b", "http://host/a@b"),
    ],
)
def test_what_is_written_of_a_url_holds_no_password(url, written):
    assert harmless(url) == written


@pytest.mark.parametrize(
    "setting",
    [
        {"concurrency": 0},
        {"per_host": 0.5},
        {"retries": -1},
        {"max_bytes": 0},
        {"read_timeout": -1},
        {"total_timeout": 0},
        {"backoff": "1"},
    ]
    + [{"user_agent": agent} for agent in ("", " a", "a\r\nX: y", "ü")],
)
def test_settings_that_make_no_sense_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Manners(**setting)

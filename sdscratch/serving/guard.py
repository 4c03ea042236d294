"""What stands before the app: whole and small bodies in good time, the server's name, the token, and careful headers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address, ip_address
from secrets import compare_digest
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sdscratch.serving.problems import Problem, log, our_fault

WISHES = ("/generate", "/jobs")
MAX_BODY = 64 * 1024
OPEN_PATHS = ("/", "/health", "/config")
OPEN_FOLDER = "/page/"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
CAREFUL = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class WholeBody:
    """Lets requests through once their body is there: at most `limit` bytes, within `seconds`.

    One that is too large is read to its end and forgotten, so that its sender hears the answer.
    """

    def __init__(self, app: ASGIApp, seconds: float, limit: int = MAX_BODY) -> None:
        self.app, self.limit, self.seconds = app, limit, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        body, size = bytearray(), 0
        try:
            async with asyncio.timeout(self.seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return
                    part, more = message.get("body", b""), message.get("more_body", False)
                    size += len(part)
                    if size <= self.limit:
                        body += part
        except TimeoutError:
            problem = Problem(408, f"the request took longer than {self.seconds:g} s to arrive")
            return await problem.response(Connection="close")(scope, receive, send)
        if size > self.limit:
            problem = Problem(413, f"the body is of {size} bytes: expected at most {self.limit}")
            return await problem.response()(scope, receive, send)
        given = False

        async def receive_whole() -> Message:
            nonlocal given
            if given:
                return await receive()  # the end of the connection
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        await self.app(scope, receive_whole, send)


class KnownName:
    """Refuses whoever calls the server by a strange name: the page of a stranger, that has pointed a name of its own here.

    names: those that callers may use beside localhost and addresses. Without any, only connections within this machine are
    asked for one.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self.app, self.names = app, {"localhost", *map(str.lower, names)}
        self.everywhere = bool(names)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._asks(scope) or self._is_known(Headers(scope=scope).get("host")):
            return await self.app(scope, receive, send)
        problem = Problem(
            421, "this server has another name", "Host", "the server's setting hosts= lets other names in"
        )
        await problem.response()(scope, receive, send)

    def _asks(self, scope: Scope) -> bool:
        ip = _ip((scope.get("server") or [""])[0])  # at which the connection has come in
        return self.everywhere or (ip is not None and ip.is_loopback)

    def _is_known(self, host: str | None) -> bool:
        """None is: browsers always say one."""
        try:
            name = urlsplit(f"//{host or 'localhost'}").hostname or ""
        except ValueError:
            return False
        return name in self.names or _ip(name) is not None  # an address is nobody's to point elsewhere


def _ip(text: str) -> IPv4Address | IPv6Address | None:
    try:
        ip = ip_address(text)
    except ValueError:
        return None
    return getattr(ip, "ipv4_mapped", None) or ip


class Token:
    """Asks for `Authorization: Bearer TOKEN`, but for what a page needs before it knows one. No token: open to all."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self.app, self.expected = app, token and f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self.expected or _is_open(scope) or self._is_given(scope):
            return await self.app(scope, receive, send)
        problem = Problem(401, "this server asks for a token", hint="send Authorization: Bearer TOKEN")
        await problem.response(**{"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _is_given(self, scope: Scope) -> bool:
        assert self.expected
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        return compare_digest(given, self.expected)


def _is_open(scope: Scope) -> bool:
    path: str = scope["path"]
    return path in OPEN_PATHS or (path.startswith(OPEN_FOLDER) and ".." not in path)


class NoRoom:
    """Refuses wishes while none can be taken, before anyone has looked at them: that costs next to nothing."""

    def __init__(self, app: ASGIApp, refusal: Callable[[], Problem | None]) -> None:
        self.app, self.refusal = app, refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_wish = scope["type"] == "http" and scope["method"] == "POST" and scope["path"] in WISHES
        if is_wish and (problem := self.refusal()):
            return await problem.response()(scope, receive, send)
        await self.app(scope, receive, send)


class OurFault:
    """Answers a bug of ours as everything else is answered; its traceback is for the log."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def send_and_note(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:
            if begun or scope["type"] != "http":
                raise
            log.error("%s %s failed", scope["method"], scope["path"], exc_info=error)
            await our_fault().response()(scope, receive, send)


class CarefulHeaders:
    """Adds what tells browsers to run nothing foreign, and to keep nothing that they were not told to keep."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in CAREFUL.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_careful)

"""Asks the web for pictures: many hosts at once, few requests to each, and no answer is trusted.

An answer is a body of at most `max_bytes` with a picture's content type, or Refused: a reason why there is none.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from types import TracebackType
from typing import TypeVar
from weakref import WeakValueDictionary

import httpx

from sdscratch.errors import ConfigError, check_whole
from sdscratch.prepare.download.addresses import Transport
from sdscratch.prepare.download.opt_out import opted_out
from sdscratch.prepare.refusal import Refused

Result = TypeVar("Result")

_PASSING = {"408", "425", "429", "timeout", "connection failed"}  # and all from 500
_BINARY = ("application/octet-stream", "binary/octet-stream")  # of servers that do not know what they have
_USER = re.compile(r"^(\s*[a-z][a-z0-9+.-]*:[/\\]*)[^/?#\\]*@", re.IGNORECASE)


@dataclass(frozen=True)
class Manners:
    """How the web is asked.

    concurrency: requests at once, and per_host of them to one host. connect_timeout, read_timeout: seconds until a
    connection stands, and between two pieces of an answer; total_timeout: for one whole answer. retries: after passing
    failures (429, 5xx, timeouts, broken connections), the first after `backoff` seconds, each later one after twice as
    long, or when the server says; a server that asks for more than longest_wait seconds is given up. max_bytes: of a
    body, also when it was compressed. user_agent: its first word is the robot's name that X-Robots-Tag may use.
    allow_private: ask addresses of this network and this machine too.
    """

    concurrency: int = 64
    per_host: int = 4
    connect_timeout: float = 10.0
    read_timeout: float = 10.0
    total_timeout: float = 30.0
    retries: int = 2
    backoff: float = 1.0
    longest_wait: float = 30.0
    max_redirects: int = 5
    max_bytes: int = 20_000_000
    user_agent: str = "sdscratch"
    allow_private: bool = False

    def __post_init__(self) -> None:
        for name, least in {"concurrency": 1, "per_host": 1, "retries": 0, "max_redirects": 0, "max_bytes": 1}.items():
            check_whole(name, getattr(self, name), least)
        for name in ("connect_timeout", "read_timeout", "total_timeout", "backoff", "longest_wait"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 86400:
                raise ConfigError(f"{name} is {value!r}: expected seconds, at most a day's")
            if value == 0 and name.endswith("timeout"):
                raise ConfigError(f"{name} is 0: nothing comes in no time; expected seconds, such as 10")
        if not re.fullmatch(r"[!-~]+( [ -~]*)?", str(self.user_agent)):
            raise ConfigError(
                f"user_agent is {self.user_agent!r}: expected a name in ASCII, and what you like after it"
            )

    @property
    def robot(self) -> str:
        """The name by which X-Robots-Tag may speak to us."""
        return self.user_agent.split()[0].partition("/")[0]


class Web:
    """Asks for pictures; an async context manager, of one event loop."""

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self._all = asyncio.Semaphore(manners.concurrency)
        self._hosts = WeakValueDictionary[str, asyncio.Semaphore]()
        self._client = httpx.AsyncClient(
            transport=Transport(manners.concurrency, manners.allow_private),
            headers={"User-Agent": manners.user_agent, "Accept": "image/*", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(manners.read_timeout, connect=manners.connect_timeout, pool=None),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),  # none is kept
            trust_env=False,
        )

    async def __aenter__(self) -> Web:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def get(self, url: str, use: Callable[[bytes], Awaitable[Result]]) -> Result:
        """What `use` makes of the picture at `url`. Raises Refused, as does `use`.

        No more than `concurrency` pictures are being asked for or used at a time, so memory is bounded.
        """
        for attempt in range(self.manners.retries + 1):
            try:
                return await self._follow(parsed(url), use)
            except Refused as refused:
                if not refused.again or attempt == self.manners.retries or refused.wait > self.manners.longest_wait:
                    raise
                await asyncio.sleep(max(refused.wait, self.manners.backoff * 2**attempt))
        raise AssertionError("the last attempt returns or raises")

    async def _follow(self, url: httpx.URL, use: Callable[[bytes], Awaitable[Result]]) -> Result:
        for _ in range(self.manners.max_redirects + 1):
            host = self._hosts.setdefault(url.host, asyncio.Semaphore(self.manners.per_host))
            async with host, self._all:
                answer = await self._answer(url)
                if isinstance(answer, bytes):
                    return await use(answer)
                url = answer
        raise Refused("too many redirects")

    async def _answer(self, url: httpx.URL) -> bytes | httpx.URL:
        """The body, or where it is to be found."""
        auth = (url.username, url.password) if url.userinfo else None
        try:
            async with asyncio.timeout(self.manners.total_timeout):
                # Without the password, which httpx would otherwise write into its log.
                async with self._client.stream("GET", url.copy_with(userinfo=b""), auth=auth) as response:
                    self._check_head(response)
                    if response.has_redirect_location:
                        return parsed(str(url.join(response.headers["location"])))
                    return _unpacked(response, await self._body(response), self.manners.max_bytes)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise Refused("timeout", again=True) from error
        except httpx.TransportError as error:
            raise Refused("connection failed", again=True) from error
        except Refused:
            raise
        except Exception as error:  # parsers of hostile answers raise nearly anything
            raise Refused("bad answer", type(error).__name__) from error

    def _check_head(self, response: httpx.Response) -> None:
        status = response.status_code
        if status != 200 and not response.has_redirect_location:
            raise Refused(str(status), "", is_passing(str(status)), _wait(response.headers.get("retry-after", "")))
        if directive := opted_out(response.headers.get_list("x-robots-tag"), self.manners.robot):
            raise Refused("opted out", directive)
        kind = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        if status == 200 and kind and not kind.startswith("image/") and kind not in _BINARY:
            raise Refused("wrong type", kind)

    async def _body(self, response: httpx.Response) -> bytes:
        most, body = self.manners.max_bytes, bytearray()
        length = response.headers.get("content-length", "")
        if length.isascii() and length.isdigit() and int(length) > most:
            raise Refused("too large", f"{length} bytes")
        async for piece in response.aiter_raw():
            body += piece
            if len(body) > most:
                raise Refused("too large", f"more than {most} bytes")
        return bytes(body)


def is_passing(reason: str) -> bool:
    """Whether what a row fell for may be over later: 429, 5xx, timeouts, broken connections."""
    return reason in _PASSING or (reason.isdecimal() and int(reason) >= 500)


def parsed(text: str) -> httpx.URL:
    """A URL that may be asked. Raises Refused."""
    try:
        url = httpx.URL(text.strip())
    except (httpx.InvalidURL, ValueError) as error:
        raise Refused("bad URL") from error
    if url.scheme not in ("http", "https"):
        raise Refused("not http", url.scheme)
    if not url.host or (url.port or 0) > 65535:
        raise Refused("bad URL")
    return url


def harmless(url: str) -> str:
    """A URL as it may be written down: without user and password."""
    return _USER.sub(r"\1", url)


def _unpacked(response: httpx.Response, body: bytes, most: int) -> bytes:
    """The body without the compression that some servers use though it was not asked for."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise Refused("wrong type", f"content-encoding {encoding[:40]}")
    try:
        unpacked = zlib.decompressobj(wbits=47).decompress(body, most + 1)  # 47: gzip or zlib, whichever it is
    except zlib.error as error:
        raise Refused("bad answer", f"it is not {encoding}, as it says") from error
    if len(unpacked) > most:
        raise Refused("too large", f"more than {most} bytes when unpacked")
    return unpacked


def _wait(retry_after: str) -> float:
    """Seconds that a server asks to wait; 0 when it does not say."""
    if retry_after.isascii() and retry_after.strip().isdigit():
        return float(retry_after)
    with suppress(ValueError, TypeError, OverflowError):
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    return 0.0

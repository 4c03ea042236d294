"""Answers made of what parsers stumble over: each is a body or a reason, never an error of ours."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

from sdscratch.prepare.download.web import Manners, Web
from sdscratch.prepare.refusal import Refused

STATUSES = ("200 OK", "200", "302 Found", "999 x", "-1 no", "200 \xff\xfe", "100 Continue", "101 Switch", "206 Part")
HEADERS = [
    "Content-Type",
    "Content-Length",
    "Location",
    "X-Robots-Tag",
    "Transfer-Encoding",
    "Content-Encoding",
    "Retry-After",
    "\xffodd",
]
VALUES = (
    "image/png",
    "5",
    "-5",
    "9" * 5000,
    "chunked",
    "gzip",
    "deflate, gzip",
    "http://\xff\xfe/",
    "http://[",
    "//",
    "a:b",
)
VALUES += ("\x00", "\xc3\xbc", "a" * 70_000, "Wed, 99 Foo 2020", "1e9", "identity", "http://127.0.0.1:99999/", "?", "")


def answer(random: Random) -> bytes:
    lines = [f"{random.choice(HEADERS)}: {random.choice(VALUES)}" for _ in range(random.randrange(5))]
    head = "\r\n".join([f"HTTP/1.1 {random.choice(STATUSES)}", *lines, "", ""])
    return head.encode("latin-1") + random.randbytes(random.randrange(200))


async def outcomes(count: int) -> Counter[str]:
    random, found = Random(0), Counter[str]()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer(random))
        writer.close()

    async def use(body: bytes) -> str:
        return "body"

    async def ask(web: Web, url: str) -> None:
        try:
            found[await web.get(url, use)] += 1
        except Refused as refused:
            found[refused.reason] += 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with Web(Manners(allow_private=True, retries=0, per_host=32)) as web:
        await asyncio.gather(*(ask(web, f"http://127.0.0.1:{port}/{n}") for n in range(count)))
    server.close()
    return found


def test_no_answer_of_a_server_is_more_than_a_reason():
    found = asyncio.run(outcomes(300))
    assert found.total() == 300 and found["body"] > 10 and found["connection failed"] > 100 and len(found) >= 4

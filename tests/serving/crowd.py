"""Many callers at once, from a process of their own, so that their work is not the server's.

    python crowd.py HOST PORT CALLERS ROUNDS

Every caller has a connection. In each round all ask at the same moment: one in ten for /health, the others for a picture.
A line of JSON comes out: for each kind of answer, `health`, `200`, `429`, ..., the milliseconds of each.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import defaultdict

WISH = json.dumps({"prompt": "a red circle", "steps": 3, "seed": 1}).encode()
DRAW = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


class Caller(asyncio.Protocol):
    """Asks again and again, and knows when each answer began."""

    def __init__(self) -> None:
        self.parts, self.began, self.answer = [], 0.0, asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def ask(self, request: bytes) -> asyncio.Future[tuple[str, float]]:
        self.parts, self.answer = [], asyncio.get_running_loop().create_future()
        self.began = time.perf_counter()
        self.transport.write(request)
        return self.answer

    def data_received(self, data: bytes) -> None:
        self.parts.append(data)
        whole = b"".join(self.parts)
        head, _, body = whole.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length and len(body) >= int(length) and not self.answer.done():
            self.answer.set_result((head[9:12].decode(), 1000 * (time.perf_counter() - self.began)))

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answer.done():
            self.answer.set_result(("lost", 0.0))


async def crowd(host: str, port: int, callers: int, rounds: int) -> dict[str, list[float]]:
    loop, found = asyncio.get_running_loop(), defaultdict(list)
    pairs = [await loop.create_connection(Caller, host, port) for _ in range(callers)]
    for _ in range(rounds):
        requests = [HEALTH if i % 10 == 0 else DRAW % (len(WISH), WISH) for i in range(callers)]
        answers = await asyncio.gather(*(caller.ask(requests[i]) for i, (_, caller) in enumerate(pairs)))
        for i, (status, milliseconds) in enumerate(answers):
            found["health" if i % 10 == 0 and status in ("200", "503") else status].append(round(milliseconds, 2))
        await asyncio.sleep(0.5)
    return found


if __name__ == "__main__":
    host, port, callers, rounds = sys.argv[1:]
    print(json.dumps(asyncio.run(crowd(host, int(port), int(callers), int(rounds)))))

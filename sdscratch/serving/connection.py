"""A caller's connection: what uvicorn leaves open of how long, how much and how many it may be."""

from __future__ import annotations

import asyncio
import re
from typing import Any, cast

from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from sdscratch.serving.guard import CAREFUL
from sdscratch.serving.problems import SEE_API, Problem

MAX_HEAD = 64 * 1024
END_OF_HEAD = b"\r\n\r\n"
UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)
STALLED = 60.0  # seconds


class Connection(HttpToolsProtocol):
    """HTTP/1.1 that hangs up on callers who take up room: a request's head that is not whole within `patience` seconds, or
    too long; an answer of which nothing was read for a minute; more than `most` at once.

    uvicorn has a limit for connections that say nothing between requests, and none for those that say or hear it slowly.
    """

    def __init__(self, *args: Any, patience: float, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience, self.most, self.head_size = patience, most, 0
        self.deadline = self.reading = cast(asyncio.TimerHandle | None, None)
        self.answering = cast(RequestResponseCycle | None, None)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.most:
            self._refuse(Problem(503, "too many are connected", hint="try again in a moment", retry_after=2))
        else:
            self._watch()

    def data_received(self, data: bytes) -> None:
        if not self._is_answering():
            end = data.find(END_OF_HEAD)
            self.head_size += len(data) if end < 0 else end
            if self.head_size > MAX_HEAD:
                return self._refuse(Problem(431, f"the request's head is of more than {MAX_HEAD} bytes"))
            data = UPGRADE.sub(b"\r\nnot-done:", data[:end]) + data[end:]  # else its body would not be read
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        self.resume_writing()  # whoever waits for it need not any more
        if self.answering is not None:  # uvicorn tells the last request of those that came together only
            self.answering.disconnected = not self.answering.response_complete
            self.answering.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._see_whether_it_is_read(1 + self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.reading is not None:
            self.reading.cancel()

    def send_400_response(self, msg: str) -> None:
        self._refuse(Problem(400, "the request cannot be read as HTTP/1.1", hint=SEE_API))

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGIApp) -> None:  # type: ignore[override]
        self.answering = cycle
        super()._start_asgi_task(cycle, app)  # type: ignore[arg-type]

    def _is_answering(self) -> bool:
        """Or about to: where a body is missing, WholeBody waits for it."""
        return self.cycle is not None and not self.cycle.response_complete

    def _watch(self) -> None:
        if self._is_answering():
            self._forget()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.patience, self.timeout_keep_alive_handler)

    def _forget(self) -> None:
        self.head_size = 0
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def _see_whether_it_is_read(self, left: int) -> None:
        """left: bytes of the answer that were left a while ago."""
        now = self.transport.get_write_buffer_size()
        if now < left:
            self.reading = self.loop.call_later(STALLED, self._see_whether_it_is_read, now)
        else:
            self.transport.abort()

    def _refuse(self, problem: Problem) -> None:
        """Without asking the app."""
        answer = problem.response(Connection="close", **CAREFUL)
        head = [STATUS_LINE[problem.status], *(b"%b: %b\r\n" % header for header in answer.raw_headers), b"\r\n"]
        self.transport.write(b"".join([*head, bytes(answer.body)]))
        self.transport.close()

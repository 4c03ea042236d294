"""The HTTP server around the app: its socket, the time that clients have, and what a signal does."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from sdscratch.console import say
from sdscratch.errors import ConfigError
from sdscratch.serving.engine import Engine

BACKLOG = 2048
MAX_HEAD = 64 * 1024


class PatientForAWhile(HttpToolsProtocol):
    """HTTP/1.1 that closes a connection on which a request's head is not whole within `patience` seconds, or is too long.

    uvicorn has a limit for connections that say nothing between requests, and none for those that say it slowly.
    """

    def __init__(self, *args: Any, patience: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.patience, self.deadline = patience, cast(asyncio.TimerHandle | None, None)
        self.head_size = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self, size: int = 0) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()  # a request is being answered; WholeBody sees to its body
            return
        self.head_size += size
        if self.head_size > MAX_HEAD:
            self.timeout_keep_alive_handler()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.patience, self.timeout_keep_alive_handler)

    def _forget(self) -> None:
        self.head_size = 0
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class Server(uvicorn.Server):
    """Listens at once; says when the engine is ready, tells it when it is told to stop, and ends with it.

    grace: seconds that a drawing under way is given. port: 0 takes a free one. Raises ConfigError where it cannot listen.
    """

    def __init__(self, app: FastAPI, engine: Engine, host: str, port: int, grace: float) -> None:
        self.engine, self.said = engine, False
        self.listener = _listen(host, port)
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.listener.getsockname()[1]}"
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(PatientForAWhile, patience=engine.limits.read_seconds),  # type: ignore[arg-type]
                ws="none",
                backlog=BACKLOG,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(grace) + 5,
            )
        )

    def answer(self) -> None:
        """Until a signal comes, which is then raised again, or the engine fails, with its error."""
        self.run(sockets=[self.listener])
        if self.engine.failure is not None:
            raise self.engine.failure

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = again = self.should_exit
        super().handle_exit(sig, frame)
        self.engine.stop_soon(at_once=again)

    async def on_tick(self, counter: int) -> bool:
        if not self.said and self.engine.status == "ready":
            say(f"serving {self.engine.shelf.first.id} at {self.address}")
            self.said = True
        return await super().on_tick(counter) or self.engine.failure is not None


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at host={host} port={port}: {reason}. Choose another port=") from error
    return listener

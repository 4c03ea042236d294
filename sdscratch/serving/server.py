"""The HTTP server around the app: its socket, the time that clients have, and what a signal does."""

from __future__ import annotations

import asyncio
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sdscratch.console import say
from sdscratch.errors import ConfigError
from sdscratch.serving.engine import Engine
from sdscratch.serving.guard import READ_SECONDS

BACKLOG = 2048


class PatientForAWhile(H11Protocol):
    """HTTP/1.1 that closes a connection on which no whole request head has come within READ_SECONDS.

    uvicorn has a limit for connections that say nothing between requests, and none for those that say it slowly.
    """

    deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._forget()  # a request is being answered; WholeBody sees to its body
        elif self.deadline is None:
            self.deadline = self.loop.call_later(READ_SECONDS, self.timeout_keep_alive_handler)

    def _forget(self) -> None:
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None


class Server(uvicorn.Server):
    """Tells the engine when it is told to stop, says when the engine is ready, and ends with it."""

    def __init__(self, config: uvicorn.Config, engine: Engine, ready: str) -> None:
        super().__init__(config)
        self.engine, self.ready = engine, ready

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.should_exit:
            self.force_exit = True
        super().handle_exit(sig, frame)
        self.engine.stop_soon()

    async def on_tick(self, counter: int) -> bool:
        if self.ready and self.engine.status == "ready":
            say(self.ready)
            self.ready = ""
        return await super().on_tick(counter) or self.engine.failure is not None


def serve(app: FastAPI, engine: Engine, host: str, port: int, grace: float) -> None:
    """Answer until a signal comes, which is then raised again; or raise why the engine has failed."""
    listener = _listen(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    config = uvicorn.Config(
        app,
        http=PatientForAWhile,
        ws="none",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace) + 5,
    )
    Server(config, engine, f"serving {engine.shelf.first.id} at {address}").run(sockets=[listener])
    if engine.failure is not None:
        raise engine.failure


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

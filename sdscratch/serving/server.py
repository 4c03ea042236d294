"""The HTTP server around the app: its socket, when it is ready, and what a signal does."""

from __future__ import annotations

import resource
import socket
from contextlib import suppress
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from sdscratch.console import say
from sdscratch.errors import ConfigError
from sdscratch.serving.connection import Connection
from sdscratch.serving.engine import Engine

BACKLOG = 2048
MANY_FILES = 65536


class Server(uvicorn.Server):
    """Listens at once; says when the engine is ready, tells it when it is told to stop, and ends with it.

    grace: seconds that a drawing under way is given. port: 0 takes a free one. Raises ConfigError where it cannot listen.
    """

    def __init__(self, app: FastAPI, engine: Engine, host: str, port: int, grace: float) -> None:
        self.engine, self.said = engine, False
        self.listener, files = _listen(host, port), _open_files()
        self.address = f"http://{f'[{host}]' if ':' in host else host}:{self.listener.getsockname()[1]}"
        super().__init__(
            uvicorn.Config(
                app,
                http=partial(Connection, patience=engine.limits.read_seconds, most=files // 2),  # type: ignore[arg-type]
                ws="none",
                lifespan="on",  # an app that cannot begin is an error, not one without beginnings
                backlog=min(BACKLOG, files // 8),  # so many are let in before any of them is looked at
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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn would leave the app as it is
            await self.lifespan.shutdown()

    async def on_tick(self, counter: int) -> bool:
        if not self.said and self.engine.status == "ready":
            say(f"serving {self.engine.shelf.first.id} at {self.address}")
            self.said = True
        return await super().on_tick(counter) or self.engine.failure is not None


def _open_files() -> int:
    """How many this process may have from now on: all that it is given for the asking, if it needs so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, MANY_FILES)), hard))
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MANY_FILES if most == resource.RLIM_INFINITY else most


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)  # now: until then another process may do the same
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"cannot listen at host={host} port={port}: {reason}. Choose others") from error
    return listener

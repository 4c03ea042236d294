"""Waiting for what may never come."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from starlette.requests import Request


async def gone(request: Request) -> None:
    """Until the one who asked has hung up. The body has to be read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def until_either(*waits: Coroutine[object, object, None]) -> None:
    """Until the first of them has ended; the others are given up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()

"""A web server for downloaders: pictures, and every way of not giving one. What it answers depends on the path alone."""

from __future__ import annotations

import asyncio
import gzip
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from types import TracebackType

BOMB = gzip.compress(bytes(30_000_000), 1, mtime=0)
OK, HTML = "200 OK", {"Content-Type": "text/html"}


class WebServer:
    """Serves `files` below /img/ on a port of 127.0.0.1, in a thread of its own; a context manager.

    files: name -> (content type, content). delay: seconds before each answer. asked: how often each path was.
    most_at_once: the most requests that were open together.
    """

    def __init__(
        self, files: Mapping[str, tuple[str, bytes]], delay: float = 0.0, tls: ssl.SSLContext | None = None
    ) -> None:
        self.files, self.delay, self.tls = dict(files), delay, tls
        self.asked, self.heads = Counter[str](), dict[str, str]()
        self.open = self.most_at_once = 0

    def __enter__(self) -> WebServer:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self.tls), self._loop
        )
        self._server = starting.result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _end(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await _head(reader):
                path = head.split(" ")[1]
                self.asked[path] += 1
                self.heads[path] = head
                self.open += 1
                self.most_at_once = max(self.most_at_once, self.open)
                try:
                    await asyncio.sleep(self.delay)
                    goes_on = await self._answer(path, reader, writer)
                finally:
                    self.open -= 1
                if not goes_on:
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass  # whoever asked is gone, or the server ends
        finally:
            writer.close()

    async def _answer(self, path: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Whether the connection may be used again."""
        kind, _, rest = path.lstrip("/").partition("/")
        picture = next(iter(self.files.values()))
        match kind:
            case "img" if rest in self.files:
                _send(writer, OK, {"Content-Type": self.files[rest][0]}, self.files[rest][1])
            case "status":  # /status/CODE/...
                _send(writer, f"{rest.partition('/')[0]} Such", HTML, b"no")
            case "flaky":  # /flaky/N/...: the first N times it fails
                broken = self.asked[path] <= int(rest.partition("/")[0])
                _send(writer, "503 Busy" if broken else OK, {"Content-Type": picture[0]}, picture[1])
            case "wait":  # /wait/SECONDS: the first time it asks for patience
                patience = {"Retry-After": rest.partition("/")[0]}
                _send(writer, "429 Slowly" if self.asked[path] == 1 else OK, patience, picture[1])
            case "robots":  # /robots/VALUE, with + for spaces
                _send(writer, OK, {"X-Robots-Tag": rest.replace("+", " "), "Content-Type": picture[0]}, picture[1])
            case "to":  # /to/LOCATION
                _send(writer, "302 Found", {"Location": rest})
            case "loop":
                _send(writer, "301 Moved", {"Location": path})
            case "html":
                _send(writer, OK, HTML, b"<html>")
            case "untyped":
                _send(writer, OK, {}, picture[1])
            case "stall":
                await asyncio.sleep(3600)
            case "drip":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 1000\r\n\r\n")
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)
            case "reset":
                writer.transport.abort()
                return False
            case "cut":  # half of what it announces
                length = len(picture[1])
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nContent-Length: {length}\r\n\r\n".encode())
                writer.write(picture[1][: length // 2])
                return False
            case "half":  # half a picture, which announces no length
                _send(
                    writer, OK, {"Content-Type": picture[0], "Connection": "close"}, picture[1][: len(picture[1]) // 2]
                )
                return False
            case "endless":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n")
                while True:
                    writer.write(b"10000\r\n" + bytes(65536) + b"\r\n")
                    await writer.drain()
            case "huge":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: 999999999999\r\n\r\n")
            case "gzip":
                content = gzip.compress(picture[1], mtime=0)
                _send(writer, OK, {"Content-Type": picture[0], "Content-Encoding": "gzip"}, content)
            case "bomb":
                _send(writer, OK, {"Content-Type": "image/png", "Content-Encoding": "gzip"}, BOMB)
            case "noise":  # no HTTP at all
                writer.write(b"\x00\xff\r\n\r\n" * 100)
                return False
            case "cookie":
                _send(writer, OK, {"Set-Cookie": "a=b", "Content-Type": picture[0]}, picture[1])
            case _:
                _send(writer, "404 Not Found", HTML, b"nothing here")
        await writer.drain()
        return True


async def _head(reader: asyncio.StreamReader) -> str:
    """The request's first line and headers; empty when no more comes."""
    try:
        return (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return ""


def _send(writer: asyncio.StreamWriter, status: str, headers: Mapping[str, str], body: bytes = b"") -> None:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *(f"{k}: {v}" for k, v in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1") + body)

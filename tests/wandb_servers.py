"""Servers where W&B's should be: one that says nothing, and one that answers as much as wandb asks for, or refuses it."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

BUCKET = {
    "id": "aWQ=",
    "name": "x",
    "displayName": "x",
    "project": {"id": "cA==", "name": "sdscratch", "entity": {"id": "bWU=", "name": "me"}},
}


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a server that accepts every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"  # the kernel accepts; nobody reads


class Server(ThreadingHTTPServer):
    """Refuses with `status`, or lets runs begin; after `freeze.set()` it never answers again."""

    daemon_threads = True

    def __init__(self, status: int = 200) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.freeze, self.over = status, threading.Event(), threading.Event()
        self.seen: list[bytes] = []

    def handle_error(self, *args: Any) -> None:
        pass  # a client that went away

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.seen.append(body)
        if self.server.freeze.is_set():
            self.server.over.wait()
        answer: dict[str, Any] = {"data": {}}
        if self.server.status != 200:
            answer = {"errors": [{"message": "invalid API key"}]}
        elif b"viewer" in body:
            answer = {"data": {"viewer": {"username": "me"}}}
        elif b"UpsertBucket" in body:
            answer = {"data": {"upsertBucket": {"bucket": BUCKET, "inserted": True}}}
        elif b"CreateRunFiles" in body:
            answer = {"data": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}}}
        text = json.dumps(answer).encode()
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_PUT = do_POST

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def server(status: int = 200) -> Iterator[Server]:
    with Server(status) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        try:
            yield serving
        finally:
            serving.over.set()
            serving.shutdown()

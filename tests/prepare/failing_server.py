"""A web server on this machine that goes away in the middle, and the part of the hub's interface that fetching needs."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REPO = "someone/pictures"


@dataclass
class Site:
    """What is served. files: path -> content. cut_after: bytes of an answer's body after which the connection is closed.
    answers: status codes to give instead, one for each request, before anything is served. gated: asks for this token.
    """

    files: dict[str, bytes]
    address: str = ""
    cut_after: int | None = None
    ranges: bool = True
    etags: bool = True
    answers: list[int] = field(default_factory=list)
    gated: str = ""
    seen: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, range


@contextmanager
def serving(files: dict[str, bytes]) -> Iterator[Site]:
    site = Site(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"site": site}))
    site.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    site: Site
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, with_body: bool) -> None:
        site = self.site
        site.seen.append((self.command, self.path, self.headers.get("Range", "")))
        if site.gated and self.headers.get("Authorization") != f"Bearer {site.gated}":
            return self._send(401, b"", {"X-Error-Code": "GatedRepo", "X-Error-Message": "restricted"})
        if with_body and site.answers:
            return self._send(site.answers.pop(0), b"not now")
        path = self.path.lstrip("/").partition("?")[0]
        if path.startswith("api/datasets/"):
            return self._send(200, json.dumps(self._data_set()).encode(), {"Content-Type": "application/json"})
        content = site.files.get(re.sub(f"^datasets/{REPO}/resolve/[^/]+/", "", path))
        if content is None:
            return self._send(404, b"")
        tag = sha256(content).hexdigest()
        headers = {"X-Repo-Commit": "0" * 40} | ({"ETag": f'"{tag}"'} if site.etags else {})
        first, status = 0, 200
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and site.ranges and self.headers.get("If-Range", f'"{tag}"') == f'"{tag}"':
            first, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        self._send(status, content[first:], headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, with_body: bool = True) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or not with_body:
            return
        cut = self.site.cut_after
        self.wfile.write(body if cut is None else body[:cut])
        if cut is not None and cut < len(body):
            self.close_connection = True

    def _data_set(self) -> dict[str, object]:
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": sha1(content).hexdigest()}
            | {
                "lfs": {
                    "oid": sha256(content).hexdigest(),
                    "sha256": sha256(content).hexdigest(),
                    "size": len(content),
                    "pointerSize": 1,
                }
            }
            for name, content in self.site.files.items()
        ]
        return {"id": REPO, "sha": "0" * 40, "siblings": siblings, "private": False, "gated": False, "tags": []}

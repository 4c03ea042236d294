"""`sdscratch data download`, as it is called."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image
from web_server import WebServer

from sdscratch.cli import main
from sdscratch.data.manifest import MANIFEST, Manifest


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    file = BytesIO()
    Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    with WebServer({f"{n}": ("image/png", file.getvalue()) for n in range(40)}) as server:
        yield server


def words(server: WebServer, folder: Path, paths: list[str], *overrides: str) -> list[str]:
    lines = [f"{server.url}/{path},number {n}" for n, path in enumerate(paths)]
    (folder / "rows.csv").write_text("\n".join(["url,caption", *lines, ""]))
    private = [
        "manners.allow_private=true",
        "manners.backoff=0.01",
        "pictures.size=32",
        "pictures.min_size=16",
        "shard_size=4",
    ]
    return ["data", "download", f"path={folder / 'rows.csv'}", f"out={folder / 'out'}", *private, *overrides]


def test_it_says_what_is_where_and_how_many_fell_for_which_reason(server, tmp_path, capsys):
    command = words(server, tmp_path, ["img/1", "img/2", "status/404", "robots/noai", "status/404/2", "img/3"])
    assert main(command) == 0
    said = capsys.readouterr()
    out = tmp_path / "out"
    fell = f"3 fell (404: 2, opted out: 1), each named in {out / 'dropped.jsonl'}"
    assert said.err == "" and said.out == f"{out}: 3 pictures of 6 rows in 2 shards; {fell}\n"
    assert main(command) == 0 and capsys.readouterr().out == said.out


def test_it_says_how_to_ask_again_for_what_may_be_had_by_now(server, tmp_path, capsys):
    command = words(server, tmp_path, ["img/1", "flaky/1/x", "status/404"], "manners.retries=0")
    assert main(command) == 0
    assert capsys.readouterr().out.endswith("dropped.jsonl; retry_failed=true asks again for 1 of them\n")
    assert main([*command, "retry_failed=true"]) == 0
    assert "2 pictures of 3 rows in 1 shards; 1 fell (404: 1)" in capsys.readouterr().out
    assert main([*command, "retry_failed=true", "engine=img2dataset"]) == 2
    assert "retry_failed=true is for engine=local" in capsys.readouterr().err


def test_private_addresses_are_closed_by_default(server, tmp_path, capsys):
    assert main(words(server, tmp_path, ["img/1"], "manners.allow_private=false")) == 2
    assert "All were dropped: {'private address': 1}" in capsys.readouterr().err


def test_a_password_in_a_url_is_written_nowhere(server, tmp_path, capsys):
    command = words(server, tmp_path, ["img/1", "status/404"])
    rows = tmp_path / "rows.csv"
    rows.write_text(rows.read_text().replace("http://", "http://me:pa55word@"))
    assert main(command) == 0
    said = capsys.readouterr()
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert b"img/1" in written and b"pa55word" not in written and "pa55word" not in said.out + said.err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("path=nowhere", "no rows in nowhere"),
        ("out=", "out is empty"),
        ("pictures.size=0", "size is 0"),
        ("shard_size=0", "shard_size is 0"),
        ("shard_size=99999999999999999999", "at least 1 and at most 1000000"),
        ("workers=-1", "workers is -1"),
        ("manners.per_host=0", "per_host is 0"),
        ("manners.per_hots=1", "per_hots"),
        ("engine=curl", "engine='curl' is unknown; expected local or img2dataset"),
        ("engine=img2dataset", "pip install img2dataset"),
    ],
)
def test_what_cannot_be_downloaded_is_refused_in_one_line(server, tmp_path, capsys, override, said):
    assert main(words(server, tmp_path, ["img/1"], override)) == 2
    err = capsys.readouterr().err
    assert said in err and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()


def test_it_starts_without_torch():
    code = "import sys, sdscratch.commands.data_download; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_stopped_by_ctrl_c_it_ends_at_once_and_goes_on_later(server, tmp_path, capsys):
    command = words(server, tmp_path, [f"img/{n}" for n in range(40)], "manners.concurrency=1", "shard_size=2")
    server.delay = 0.1
    process = subprocess.Popen([sys.executable, "-m", "sdscratch", *command], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*.tar")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    server.delay = 0.0
    assert process.returncode == 130 and err == "sdscratch: stopped\n" and not (tmp_path / "out" / MANIFEST).exists()
    assert main(command) == 0 and Manifest.read(tmp_path / "out").total == 40

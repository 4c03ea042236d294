"""The other engine. A stand-in writes what img2dataset 1.47 writes; SDS_IMG2DATASET_PYTHON runs the real one too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from web_server import WebServer

from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import UNFINISHED
from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare.download import img2dataset
from sdscratch.prepare.download.downloader import Downloader
from sdscratch.prepare.download.url_rows import UrlRows
from sdscratch.prepare.download.web import Manners
from sdscratch.prepare.pictures import Form

STAND_IN = """
import io, json, os, tarfile, time, urllib.request
import pyarrow as pa, pyarrow.parquet as pq

def download(url_list, output_folder, number_sample_per_shard, url_col, disable_all_reencoding, output_format, **others):
    assert disable_all_reencoding and output_format == "webdataset" and others["save_additional_columns"] == ["number"]
    os.makedirs(output_folder, exist_ok=True)
    if os.environ.get("STALL"):
        time.sleep(600)
    rows = pq.read_table(url_list, columns=[url_col, "number"]).to_pylist()
    for shard in range(-(-len(rows) // number_sample_per_shard)):
        report = []
        with tarfile.open(f"{output_folder}/{shard:05d}.tar", "w") as tar:
            for n, row in enumerate(rows[shard * number_sample_per_shard :][:number_sample_per_shard]):
                answer = {"number": row["number"], "key": f"{shard:05d}{n:04d}", "error_message": None}
                try:
                    with urllib.request.urlopen(row[url_col], timeout=30) as response:
                        member = tarfile.TarInfo(answer["key"] + ".jpg")
                        content = response.read()
                        member.size = len(content)
                        tar.addfile(member, io.BytesIO(content))
                except Exception as error:
                    answer["error_message"] = str(error)
                report.append(answer)
        pq.write_table(pa.Table.from_pylist(report), f"{output_folder}/{shard:05d}.parquet")
"""


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    file = BytesIO()
    Image.effect_mandelbrot((60, 40), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(file, "PNG")
    with WebServer({"a": ("image/png", file.getvalue())}) as server:
        yield server


@pytest.fixture
def stand_in(tmp_path: Path) -> str:
    """A python that has a module of the name."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "img2dataset.py").write_text(STAND_IN)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}/site" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return str(python)


@pytest.fixture
def rows(server: WebServer, tmp_path: Path) -> UrlRows:
    paths = ["img/a?1", "status/404", "img/a?2", "to//img/a", "half", "untyped", "img/a?1", "reset", "status/404/2"]
    server.files |= {f"a?{n}": server.files["a"] for n in (1, 2)}
    urls = [f"{server.url}/{path}" for path in paths] + ["file:///etc/passwd", ""]
    captions = [f"caption {n}" for n in range(len(urls))]
    pq.write_table(
        pa.table({"url": urls, "caption": captions, "similarity": [0.5] * len(urls)}), tmp_path / "rows.parquet"
    )
    return UrlRows(tmp_path / "rows.parquet")


def downloader(**settings: object) -> Downloader:
    manners = Manners(retries=0, total_timeout=30.0, allow_private=True)
    return Downloader(Form(size=32, min_size=8), manners, **{"shard_size": 4, "workers": 1, **settings})


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.tar")}


def test_both_engines_write_the_same_shards(stand_in, rows, tmp_path):
    one = downloader().write(rows, tmp_path / "local")
    two = img2dataset.write(downloader(workers=0), rows, tmp_path / "other", stand_in)
    assert shards(tmp_path / "local") == shards(tmp_path / "other") and one.shards == two.shards
    assert two.total + sum(two.dropped.values()) == len(rows) == 11
    assert two.dropped == {
        "404": 2,
        "not decodable": 1,
        "duplicate": 1,
        "connection failed": 1,
        "not http": 1,
        "no URL": 1,
    }
    assert two.dropped == one.dropped and not (tmp_path / "other" / img2dataset.FETCHED).exists()
    (tmp_path / "other" / img2dataset.FETCHED).mkdir()  # as a job leaves it that is killed at its very end
    assert img2dataset.write(downloader(workers=0), rows, tmp_path / "other", stand_in) == two
    assert not (tmp_path / "other" / img2dataset.FETCHED).exists()
    assert (
        Manifest.read(tmp_path / "other") == two == downloader().write(rows, tmp_path / "other")
    )  # engines may change


@pytest.mark.skipif("SDS_IMG2DATASET_PYTHON" not in os.environ, reason="needs an environment with img2dataset")
def test_the_real_one_gives_the_same_shards(rows, tmp_path):
    downloader().write(rows, tmp_path / "local")
    img2dataset.write(downloader(), rows, tmp_path / "other", os.environ["SDS_IMG2DATASET_PYTHON"])
    assert shards(tmp_path / "local") == shards(tmp_path / "other")


def test_a_python_that_is_none_or_has_no_img2dataset_is_named(rows, tmp_path):
    with pytest.raises(ConfigError, match="img2dataset_python=nowhere cannot be run: No such file"):
        img2dataset.write(downloader(), rows, tmp_path / "out", "nowhere")
    with pytest.raises(
        DataError, match="img2dataset failed .ModuleNotFoundError: No module named 'img2dataset'.*log.txt"
    ):
        img2dataset.write(downloader(), rows, tmp_path / "out", sys.executable)


def test_what_another_job_had_fetched_is_not_believed(stand_in, rows, tmp_path):
    """Someone removed the shards and what names their job, but not what img2dataset had brought."""
    other = tmp_path / "other.csv"
    other.write_text(f"url,caption\n{next(rows.read()).url.replace('?1', '')},of another job\n")
    out, fetched = tmp_path / "out", tmp_path / "out" / img2dataset.FETCHED
    with pytest.raises(DataError, match="img2dataset failed"):
        img2dataset.write(downloader(), UrlRows(other), out, sys.executable)
    (fetched / "shards").mkdir()
    (fetched / "shards" / "of the other job").touch()
    with pytest.raises(DataError, match="img2dataset failed"):  # the same job: it goes on with what is there
        img2dataset.write(downloader(), UrlRows(other), out, sys.executable)
    assert (fetched / "shards" / "of the other job").exists()
    (out / UNFINISHED).unlink()
    manifest = img2dataset.write(downloader(), rows, out, stand_in)
    assert manifest == downloader().write(rows, tmp_path / "local") and not fetched.exists()


def test_it_ends_with_whoever_started_it(stand_in, rows, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from sdscratch.prepare.download import img2dataset; from sdscratch.prepare.download.downloader import Downloader\n"
        "from sdscratch.prepare.pictures import Form; from sdscratch.prepare.download.url_rows import UrlRows\n"
        "from sdscratch.prepare.download.web import Manners\n"
        "img2dataset.write(Downloader(Form(), Manners()), UrlRows(Path(sys.argv[1])), Path(sys.argv[2]), sys.argv[3])"
    )
    command = [sys.executable, "-c", code, str(rows.path), str(tmp_path / "out"), stand_in]
    parent = subprocess.Popen(command, env={**os.environ, "STALL": "1"})
    shards_of_it = tmp_path / "out" / img2dataset.FETCHED / "shards"
    _wait(shards_of_it.exists)
    (child,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _wait(lambda: not _lives(child))
    assert not _lives(child)


def _lives(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)

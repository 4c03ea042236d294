"""From rows with URLs to shards."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from web_server import WebServer

from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import DROPPED, UNFINISHED, ShardFolder
from sdscratch.errors import CannotWriteError, DataError
from sdscratch.prepare.download import again
from sdscratch.prepare.download.downloader import Count, Downloader
from sdscratch.prepare.download.url_rows import UrlRows
from sdscratch.prepare.download.web import Manners
from sdscratch.prepare.pictures import Form
from sdscratch.prepare.verify import verify

PACK = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[3] / "shared" / "data"))
MANNERS = Manners(read_timeout=30.0, total_timeout=30.0, backoff=0.01, allow_private=True)


def png(number: int) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (20 + number, 30, 3), dtype=np.uint8)
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[WebServer]:
    with WebServer({f"{n}.png": ("image/png", png(n)) for n in range(12)}) as server:
        yield server


def write_rows(path: Path, urls: list[str], **columns: list[object]) -> Path:
    captions = [f"caption {n}" for n in range(len(urls))]
    pq.write_table(pa.table({"url": urls, "caption": captions, **columns}), path)
    return path


def downloader(**settings: object) -> Downloader:
    return Downloader(Form(size=24, min_size=16), MANNERS, **{"shard_size": 5, "workers": 2, **settings})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith("index")}


Rows = Callable[..., Path]


@pytest.fixture
def twelve(server: WebServer, tmp_path: Path) -> Path:
    return write_rows(tmp_path / "rows.parquet", [f"{server.url}/img/{n}.png" for n in range(12)])


def test_samples_are_the_rows_in_their_sequence_with_all_that_is_known_of_them(server, tmp_path):
    urls = [f"{server.url}/img/{n}.png" for n in range(12)]
    columns = {
        "similarity": [n / 10 for n in range(12)],
        "width": [9999] * 12,
        "source": ["laion"] * 12,
        "POS": [None] * 12,
    }
    rows = UrlRows(write_rows(tmp_path / "rows.parquet", urls, **columns))
    manifest = downloader(licence="of their owners").write(rows, tmp_path / "out")
    assert [shard.samples for shard in manifest.shards] == [5, 5, 2] and not manifest.dropped
    assert manifest.sources == {"laion": 12} and manifest.licences == {"of their owners": 12}
    index = ShardIndex.open(tmp_path / "out")
    for n, url in enumerate(urls):
        members = index.read(n)
        record = record_of(members)
        assert index.key(n) == hashlib.sha256(url.encode()).hexdigest()[:20]
        assert captions_of(members, record) == [f"caption {n}"] and members["txt"] == f"caption {n}".encode()
        assert record["url"] == url and record["similarity"] == n / 10 and "pos" not in record
        assert record["md5"] == hashlib.md5(png(n)).hexdigest() and len(record["phash"]) == 16
        assert (record["original_width"], record["original_height"]) == (30, 20 + n)
        assert min(record["width"], record["height"]) == min(24, 20 + n)


def test_every_row_is_a_sample_or_named_with_its_reason(server, tmp_path):
    good = [f"{server.url}/img/{n}.png" for n in range(4)]
    bad = {
        f"{server.url}/status/404": "404",
        f"{server.url}/robots/noai": "opted out",
        f"{server.url}/half": "not decodable",
        f"{server.url}/html": "wrong type",
        "file:///etc/passwd": "not http",
        good[0]: "duplicate",
    }
    rows = UrlRows(write_rows(tmp_path / "rows.parquet", [*good[:2], *bad, *good[2:], ""]))
    manifest = downloader().write(rows, tmp_path / "out")
    named = [json.loads(line) for line in (tmp_path / "out" / DROPPED).read_text().splitlines()]
    assert manifest.total == 4 and manifest.total + len(named) == len(rows) == 11
    assert {fields["reason"] for fields in named} == {*bad.values(), "no URL"} == set(manifest.dropped)
    assert named[0]["key"] == hashlib.sha256(f"{server.url}/status/404".encode()).hexdigest()[:20]
    assert [f"{url}" in fields["detail"] for url, fields in zip(bad, named, strict=False)] == [True] * len(bad)


def test_a_row_without_caption_is_dropped_and_not_even_asked_for(server, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text(
        f'url,caption\n{server.url}/img/1.png,\n{server.url}/img/2.png," \x01 "\n{server.url}/img/3.png,yes\n'
    )
    server.asked.clear()
    manifest = downloader().write(UrlRows(path), tmp_path / "out")
    assert manifest.dropped == {"no caption": 2} and set(server.asked) == {"/img/3.png"}


def test_the_same_answers_give_the_same_bytes_whatever_the_threads(twelve, tmp_path):
    for name, workers in {"a": 1, "b": 3}.items():
        downloader(workers=workers).write(UrlRows(twelve), tmp_path / name)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_what_is_there_is_not_asked_for_again(server, twelve, tmp_path):
    rows, out = UrlRows(twelve), tmp_path / "out"
    downloader().write(rows, out)
    before = contents(out)
    server.asked.clear()
    assert downloader().write(rows, out) == Manifest.read(out) and not server.asked
    (out / "00001.tar").unlink()  # a damaged folder is written anew
    downloader().write(rows, out)
    assert contents(out) == before


def test_an_interrupted_download_goes_on_with_the_shards_that_are_missing(server, twelve, tmp_path):
    rows, out = UrlRows(twelve), tmp_path / "out"
    downloader().write(rows, tmp_path / "whole")

    def interrupt(count: Count) -> None:
        if count.settled == 8:
            raise KeyboardInterrupt

    slow = downloader(progress=interrupt)
    slow.manners = Manners(allow_private=True, concurrency=1)
    with pytest.raises(KeyboardInterrupt):
        slow.write(rows, out)
    assert (out / UNFINISHED).exists() and (out / "00000.tar").exists()
    server.asked.clear()
    downloader().write(rows, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert not set(server.asked) & {f"/img/{n}.png" for n in range(5)}


def test_other_rows_or_another_form_are_refused_for_the_same_folder(twelve, server, tmp_path):
    downloader().write(UrlRows(twelve), tmp_path / "out")
    other = write_rows(tmp_path / "other.parquet", [f"{server.url}/img/1.png"])
    with pytest.raises(DataError, match="differ in rows, rows_fingerprint"):
        downloader().write(UrlRows(other), tmp_path / "out")
    with pytest.raises(DataError, match="differ in shard_size"):
        downloader(shard_size=6).write(UrlRows(twelve), tmp_path / "out")


def test_when_nothing_is_to_be_had_it_says_why(server, tmp_path):
    rows = UrlRows(write_rows(tmp_path / "rows.parquet", [f"{server.url}/status/410"]))
    with pytest.raises(DataError, match=r"nothing to write.*All were dropped: {'410': 1}"):
        downloader().write(rows, tmp_path / "out")


def test_a_place_that_cannot_be_written_stops_it_with_one_error(twelve, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "00000.tar").mkdir()
    (tmp_path / "out" / "unfinished.json").write_text(json.dumps(downloader().made_by(UrlRows(twelve))))
    with pytest.raises(CannotWriteError, match="00000.tar"):
        downloader().write(UrlRows(twelve), tmp_path / "out")


def test_progress_ends_with_all_rows_settled(twelve, server, tmp_path):
    counts = list[Count]()
    downloader(progress=counts.append).write(UrlRows(twelve), tmp_path / "out")
    assert counts[-1] == Count(12, 0) and [count.settled for count in counts] == sorted(
        count.settled for count in counts
    )


# Asked again


@pytest.fixture
def shaky(server: WebServer, tmp_path: Path) -> UrlRows:
    """Eight rows, of which two give a picture the second time, and two never do."""
    server.asked.clear()
    paths = ["img/0.png", "flaky/1/a", "status/404", "img/1.png", "img/1.png", "status/503", "flaky/1/b", "img/2.png"]
    return UrlRows(write_rows(tmp_path / "rows.parquet", [f"{server.url}/{path}" for path in paths]))


def asking_once(**settings: object) -> Downloader:
    manners = Manners(read_timeout=30.0, total_timeout=30.0, retries=0, allow_private=True, concurrency=1)
    return Downloader(Form(size=24, min_size=16), manners, **{"shard_size": 3, "workers": 1, **settings})


def test_rows_that_fell_for_what_is_over_are_had_by_asking_again_as_if_they_had_never_fallen(server, shaky, tmp_path):
    out = tmp_path / "out"
    assert asking_once().write(shaky, out).dropped == {"503": 3, "404": 1, "duplicate": 1}
    before = server.asked.copy()
    assert asking_once().write(shaky, out).total == 3 and server.asked == before
    manifest = asking_once(retry_failed=True).write(shaky, out)
    assert manifest.total == 5 and manifest.dropped == {"503": 1, "404": 1, "duplicate": 1}
    assert server.asked - before == {"/flaky/1/a": 1, "/flaky/1/b": 1, "/status/503": 1}
    asking_once().write(shaky, tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean") and not verify(out).problems


@pytest.mark.parametrize("settled", [1, 4, 7])
def test_stopped_while_asking_again_nothing_that_was_there_is_lost(server, shaky, tmp_path, settled):
    out = tmp_path / "out"
    asking_once().write(shaky, out)

    def interrupt(count: Count) -> None:
        if count.settled >= settled:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asking_once(retry_failed=True, progress=interrupt).write(shaky, out)
    assert (out / UNFINISHED).exists()
    before = server.asked.copy()
    assert asking_once().write(shaky, out).total >= 3 and server.asked == before, "the same command tidies up"
    asking_once(retry_failed=True).write(shaky, out)
    asking_once().write(shaky, tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean")


def test_killed_between_a_shard_and_its_notes_its_pictures_are_not_asked_for_again(server, shaky, tmp_path):
    out, manifest = tmp_path / "out", asking_once().write(shaky, tmp_path / "out")
    folder = ShardFolder(out, manifest.made_by)
    again.reopen(folder, manifest, {"00000.tar": 3, "00001.tar": 3, "00002.tar": 2})
    (out / "00000.tar.json").unlink()
    del folder
    before = server.asked.copy()
    asking_once().write(shaky, out)
    assert server.asked - before == {"/flaky/1/a": 1, "/status/404": 1}
    assert not verify(out).problems and Manifest.read(out).total == 4


def test_a_damaged_shard_goes_into_no_new_one(shaky, tmp_path):
    out, _ = tmp_path / "out", asking_once().write(shaky, tmp_path / "out")
    data = bytearray((out / "00000.tar").read_bytes())
    data[600] ^= 1
    (out / "00000.tar").write_bytes(data)
    with pytest.raises(DataError, match="00000.tar is damaged: delete it"):
        asking_once(retry_failed=True).write(shaky, out)
    (out / "00000.tar").unlink()
    asking_once(retry_failed=True).write(shaky, out)
    asking_once().write(shaky, tmp_path / "clean")
    assert contents(out) == contents(tmp_path / "clean")


# Rows


def test_rows_are_the_same_from_every_kind_of_file(tmp_path):
    table = [{"url": f"http://host/{n}", "caption": f'a "q", {n}', "width": 5} for n in range(3)]
    for delimiter, name in {",": "csv", "\t": "tsv"}.items():
        with (tmp_path / f"rows.{name}").open("w", newline="") as file:
            writer = csv.DictWriter(file, table[0].keys(), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(table)
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    pq.write_table(pa.Table.from_pylist(table), tmp_path / "rows.parquet")
    read = [list(UrlRows(tmp_path / f"rows.{kind}").read()) for kind in ("csv", "tsv", "jsonl", "parquet")]
    assert read[0] == read[1] == read[2] == read[3] and [row.caption for row in read[0]] == [
        'a "q", 0',
        'a "q", 1',
        'a "q", 2',
    ]


def test_the_files_of_a_folder_are_read_in_the_sequence_of_their_names(tmp_path):
    for name in ("part-2", "part-0", "part-1"):
        write_rows(tmp_path / f"{name}.parquet", [f"http://host/{name}/{n}" for n in range(3000)])
    (tmp_path / "funnel.json").write_text("{}")
    rows = UrlRows(tmp_path)
    read = list(rows.read())
    assert [row.url for row in read] == [f"http://host/part-{k}/{n}" for k in range(3) for n in range(3000)]
    assert list(rows.read(start=4321)) == read[4321:] and [row.number for row in read] == list(range(9000))
    assert [len(part) for part in rows.slices(4000, first=1)] == [4000, 1000]


def test_a_file_of_any_name_is_read_and_no_other_one(tmp_path):
    write_rows(tmp_path / "a1xb's.parquet", ["http://a/1", "http://a/2"])
    rows = UrlRows(write_rows(tmp_path / "a[1]*b's.parquet", ["http://a/3"]))
    assert [row.url for row in rows.read()] == ["http://a/3"]


def test_a_key_that_is_given_is_kept_and_its_second_row_is_not_the_first(tmp_path):
    path = write_rows(tmp_path / "rows.parquet", ["http://a/", "http://b/", "http://c/"], key=["k1", "k1", None])
    rows = list(UrlRows(path).read())
    assert [row.key for row in rows] == ["k1", "k1", hashlib.sha256(b"http://c/").hexdigest()[:20]]
    assert [row.is_first for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "no rows in"),
        (lambda path: path.mkdir(), "no rows in"),
        (lambda path: path.write_bytes(b"torn"), "cannot be read"),
        (lambda path: pq.write_table(pa.table({"URL": ["http://a"], "TEXT": ["b"]}), path), "no column caption"),
        (
            lambda path: pq.write_table(pa.table({"link": ["http://a"]}), path),
            "no column url .it has link.*data filter",
        ),
        (lambda path: write_rows(path, ["http://a"], key=["../a"]), "has the key '../a'"),
    ],
)
def test_what_holds_no_rows_is_refused_in_one_line(tmp_path, make, said):
    path = tmp_path / "rows.parquet"
    make(path)
    with pytest.raises(DataError, match=said) as caught:
        UrlRows(path)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not (PACK / "raw" / "formats").is_dir(), reason="needs the data pack")
def test_real_pictures_arrive(tmp_path):
    paths = sorted(path for path in (PACK / "raw" / "formats").iterdir() if path.suffix != ".csv")
    files = {f"{n}": (f"image/{path.suffix[1:].lower()}", path.read_bytes()) for n, path in enumerate(paths)}
    with WebServer(files) as server:
        rows = UrlRows(write_rows(tmp_path / "rows.parquet", [f"{server.url}/img/{n}" for n in files]))
        manifest = Downloader(Form(size=256, min_size=64), MANNERS, shard_size=20).write(rows, tmp_path / "out")
    assert manifest.total + sum(manifest.dropped.values()) == len(paths) and manifest.total >= 44
    assert set(manifest.dropped) == {"not decodable", "too small"}

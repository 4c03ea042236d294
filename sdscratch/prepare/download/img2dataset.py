"""Rows with URLs -> shards of pictures, with img2dataset asking the web: the way for many machines.

img2dataset runs in an environment of its own, for its requirements contradict ours. It only fetches: its shards hold what
the web gave, untouched, and are made into ours by the same code, and to the same bytes, as in downloader.py.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sdscratch.data import tar
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import Dropped, Sample, ShardFolder, shard_name
from sdscratch.errors import ConfigError, DataError
from sdscratch.files import write_atomically
from sdscratch.prepare.download.downloader import Downloader, as_sample, fallen, silent, wanted
from sdscratch.prepare.download.url_rows import Row, UrlRows
from sdscratch.prepare.download.web import parsed
from sdscratch.prepare.engine import map_shards
from sdscratch.prepare.refusal import Refused

FETCHED = "img2dataset"  # the folder in `out` of what was fetched, until all of it has become shards
_ROWS, _LOG, _MADE_BY = "rows.parquet", "log.txt", "made_by"
_RUN = """
import json, os, signal, sys, threading
from img2dataset import download

def end_with_parent():
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)

threading.Thread(target=end_with_parent, daemon=True).start()
download(**json.loads(sys.argv[1]))
"""
_REASONS = {  # its errors, in the words of web.py
    r"X-Robots-Tag": "opted out",
    r"infinite loop|too many redirects": "too many redirects",
    r"timed out": "timeout",
    r"not known|No address": "unknown host",
}


def write(downloader: Downloader, rows: UrlRows, out: Path, python: str) -> Manifest:
    """Download all rows into `out` with the img2dataset of `python`; shards that are there already are left alone.

    Raises ConfigError where it cannot be run, DataError when it fails, and otherwise as Downloader.write.
    """
    made_by = downloader.made_by(rows)
    folder = ShardFolder(out, made_by)
    if (manifest := folder.claim()) is not None:
        shutil.rmtree(out / FETCHED, ignore_errors=True)  # of a job that was killed at its very end
        return manifest
    numbers = range(-(-len(rows) // downloader.shard_size))
    if missing := [number for number in numbers if not folder.has(shard_name(number))]:
        _write_rows(downloader.shard_size, rows, out / FETCHED, folder.made_by)
        _fetch(downloader, out / FETCHED, python)
        quiet = replace(downloader, progress=silent)  # it travels to other processes
        for _ in map_shards(partial(_convert, quiet, folder), missing, "local", downloader.workers):
            pass
    manifest = folder.finish([shard_name(number) for number in numbers])
    shutil.rmtree(out / FETCHED, ignore_errors=True)
    return manifest


def _write_rows(shard_size: int, rows: UrlRows, folder: Path, made_by: dict[str, Any]) -> None:
    """What img2dataset reads, and what becomes of its answers: a row group is a shard.

    What a stopped job has fetched is used again if it was the same job; the pictures of other rows would get these names.
    """
    columns = ("number", "key", "url", "caption", "about", "is_first", "fetched_url")
    fields = [(name, {"number": pa.int64(), "is_first": pa.bool_()}.get(name, pa.string())) for name in columns]
    schema = pa.schema(fields, metadata={_MADE_BY: json.dumps(made_by, sort_keys=True)})
    if _metadata(folder / _ROWS) == schema.metadata:
        return
    shutil.rmtree(folder, ignore_errors=True)

    def fill(file: Any) -> None:
        with pq.ParquetWriter(file, schema) as writer:
            for part in rows.slices(shard_size):
                table = [{**row._asdict(), "about": json.dumps(row.about), "fetched_url": _asked(row)} for row in part]
                writer.write_table(pa.Table.from_pylist(table, schema), row_group_size=len(table))

    write_atomically(folder / _ROWS, fill)


def _metadata(path: Path) -> dict[bytes, bytes]:
    """Of a parquet file that is whole; {} of anything else."""
    try:
        return pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return {}


def _asked(row: Row) -> str:
    """The URL, or nothing where it must not be asked: img2dataset itself would open file:/// too."""
    try:
        parsed(url := wanted(row))
    except Refused:
        return ""
    return url


def _fetch(downloader: Downloader, folder: Path, python: str) -> None:
    manners = downloader.manners
    settings = {
        "url_list": str(folder / _ROWS),
        "input_format": "parquet",
        "url_col": "fetched_url",
        "save_additional_columns": ["number"],
        "output_folder": str(folder / "shards"),
        "output_format": "webdataset",
        "number_sample_per_shard": downloader.shard_size,
        "disable_all_reencoding": True,
        "extract_exif": False,
        "compute_hash": None,
        "processes_count": downloader.workers or os.cpu_count(),
        "thread_count": manners.concurrency,
        "timeout": max(round(manners.total_timeout), 1),
        "retries": manners.retries,
        "user_agent_token": manners.robot,
    }
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"NO_ALBUMENTATIONS_UPDATE": "1"}
    command = [python, "-c", _RUN, json.dumps(settings)]
    with open(folder / _LOG, "ab") as log:
        try:
            process = subprocess.Popen(  # in a session of its own, all of which ends when our end of its stdin closes
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        except OSError as error:
            raise ConfigError(f"img2dataset_python={python} cannot be run: {error.strerror or error}") from error
        try:
            rc = process.wait()
        finally:
            process.stdin.close()  # type: ignore[union-attr]
    if rc != 0:
        last = ((folder / _LOG).read_text(errors="replace").strip() or "nothing said").splitlines()[-1]
        raise DataError(f"img2dataset failed ({last[:200]}); {folder / _LOG} tells more. The same command goes on.")


def _convert(downloader: Downloader, folder: ShardFolder, number: int) -> None:
    folder.write(shard_name(number), _samples(downloader, folder.path / FETCHED, number))


def _samples(downloader: Downloader, folder: Path, number: int) -> Iterator[Sample | Dropped]:
    table = pq.ParquetFile(folder / _ROWS).read_row_group(number).drop_columns(["fetched_url"])
    rows = [Row(**{**fields, "about": json.loads(fields["about"])}) for fields in table.to_pylist()]
    shard = folder / "shards" / shard_name(number)
    report = shard.with_suffix(".parquet")
    if not report.is_file():
        raise DataError(f"img2dataset left out {report}; {folder / _LOG} tells why. The same command goes on.")
    answers = {answer["number"]: answer for answer in pq.read_table(report).to_pylist()}
    places = {member.name: member for member in tar.members(shard)}
    with open(shard, "rb") as file:
        for row in rows:
            try:
                parsed(wanted(row))
                answer = answers.get(row.number, {"error_message": "not reported"})
                if answer["error_message"]:
                    raise _refusal(str(answer["error_message"]))
                place = places[f"{answer['key']}.jpg"]
                if place.size > downloader.manners.max_bytes:
                    raise Refused("too large", f"{place.size} bytes")
                data = os.pread(file.fileno(), place.size, place.offset)
                yield as_sample(row, data, downloader.form, downloader.source, downloader.licence)
            except Refused as refused:
                yield fallen(row, refused)


def _refusal(message: str) -> Refused:
    for sign, reason in _REASONS.items():
        if re.search(sign, message):
            return Refused(reason)
    if status := re.search(r"HTTP Error (\d{3})", message):
        return Refused(status[1])
    return Refused("connection failed", message)

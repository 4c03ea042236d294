"""Rows with URLs -> shards of pictures, by this machine alone; img2dataset.py is the way for many machines.

A shard is a fixed slice of the rows, so what a killed job left is taken up shard by shard, and the same answers of the web
give the same bytes. Some shards are under way at a time: a slow host in one does not make the others wait.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import Dropped, Sample, ShardFolder, check_shard_size, shard_name
from sdscratch.errors import check_whole
from sdscratch.prepare.download import again
from sdscratch.prepare.download.url_rows import Row, UrlRows
from sdscratch.prepare.download.web import Manners, Web, harmless, is_passing
from sdscratch.prepare.pictures import Form
from sdscratch.prepare.refusal import Refused

SHARDS_AT_ONCE = 4  # each is in memory until it is whole


class Count(NamedTuple):
    """How far a download is: rows that are settled, and those of them that gave no picture."""

    settled: int
    dropped: int


def silent(count: Count) -> None:
    """Tells nobody."""


@dataclass
class Downloader:
    """How rows become samples.

    form: what pictures are stored as. manners: how the web is asked. source, licence: of rows that do not say theirs.
    shard_size: rows of a shard; it holds fewer samples. workers: threads that decode and resize; 0 for as many as there
    are cores. retry_failed: ask once more for rows that an earlier call did not get, for what may be over by now
    (`web.is_passing`). progress: called with what has been settled so far.
    """

    form: Form
    manners: Manners
    source: str = "unknown"
    licence: str = "unknown"
    shard_size: int = 1000
    workers: int = 0
    retry_failed: bool = False
    progress: Callable[[Count], None] = silent

    def __post_init__(self) -> None:
        check_shard_size(self.shard_size)
        check_whole("workers", self.workers, least=0)

    def write(self, rows: UrlRows, out: Path) -> Manifest:
        """Download all rows into `out`; shards that are there already are left alone, but for rows to be asked for again.

        Raises DataError when `out` holds something else, or when not a single picture was to be had.
        """
        folder = ShardFolder(out, self.made_by(rows))
        firsts = range(0, len(rows), self.shard_size)
        names = [shard_name(number) for number in range(len(firsts))]
        if (manifest := folder.claim()) is not None:
            if not (self.retry_failed and any(map(is_passing, manifest.dropped))):
                return manifest
            sizes = [min(self.shard_size, len(rows) - first) for first in firsts]
            again.reopen(folder, manifest, dict(zip(names, sizes, strict=True)))
        asyncio.run(self._write(rows, folder, names))
        return folder.finish(names)

    def made_by(self, rows: UrlRows) -> dict[str, Any]:
        """What determines the samples, but for the web."""
        return {
            "by": "download",
            "rows": len(rows),
            "rows_fingerprint": rows.fingerprint,
            "shard_size": self.shard_size,
            **asdict(self.form),
            "max_bytes": self.manners.max_bytes,
            "source": self.source,
            "licence": self.licence,
        }

    async def _write(self, rows: UrlRows, folder: ShardFolder, names: list[str]) -> None:
        self._count = Count(0, 0)
        self._threads = ThreadPoolExecutor(self.workers or os.cpu_count(), "pictures")
        done = {name for name in names if folder.has(name) and not (self.retry_failed and again.may_gain(folder, name))}
        there = next((n for n, name in enumerate(names) if name not in done), len(names))
        under_way = asyncio.Semaphore(SHARDS_AT_ONCE)

        async def write(web: Web, name: str, part: list[Row]) -> None:
            known = await asyncio.to_thread(again.known, folder, name, part)
            samples = await asyncio.gather(*(self._sample(web, *row) for row in zip(part, known, strict=True)))
            await asyncio.to_thread(folder.write, name, samples)
            under_way.release()

        self._settle(min(there * self.shard_size, len(rows)), 0)
        try:
            async with Web(self.manners) as web, asyncio.TaskGroup() as group:
                for name, part in zip(names[there:], rows.slices(self.shard_size, first=there), strict=True):
                    if name in done:
                        self._settle(len(part), 0)
                    else:
                        await under_way.acquire()
                        group.create_task(write(web, name, part))
        except* Exception as errors:
            raise _first(errors) from None
        finally:
            self._threads.shutdown(cancel_futures=True)

    async def _sample(self, web: Web, row: Row, known: Sample | Dropped | None) -> Sample | Dropped:
        async def stored(data: bytes) -> Sample:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._stored, row, data)

        try:
            sample = await web.get(wanted(row), use=stored) if known is None else known
        except Refused as refused:
            sample = fallen(row, refused)
        self._settle(1, isinstance(sample, Dropped))
        return sample

    def _stored(self, row: Row, data: bytes) -> Sample:
        return as_sample(row, data, self.form, self.source, self.licence)

    def _settle(self, rows: int, dropped: int) -> None:
        self._count = Count(self._count.settled + rows, self._count.dropped + dropped)
        self.progress(self._count)


def wanted(row: Row) -> str:
    """The row's URL. Raises Refused for rows of which no sample could be made."""
    if not row.url:
        raise Refused("no URL")
    if not row.caption:
        raise Refused("no caption")
    if not row.is_first:
        raise Refused("duplicate")
    return row.url


def fallen(row: Row, refused: Refused) -> Dropped:
    """What is noted of a row without a picture."""
    detail = ": ".join(filter(None, [refused.detail, harmless(row.url)[:300]]))
    return Dropped(row.key or f"row {row.number}", refused.reason, detail)


def as_sample(row: Row, data: bytes, form: Form, source: str, licence: str) -> Sample:
    """The members of a shard that a row makes with the bytes that the web gave for it. Raises Refused."""
    picture = form.store(data)
    record = {
        "captions": [row.caption],
        "source": source,
        "licence": licence,
        **row.about,
        "url": harmless(row.url),
        **picture.known(),
    }
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    return row.key, {picture.suffix: picture.data, "txt": row.caption.encode(), "json": text.encode()}


def _first(errors: BaseExceptionGroup[Any]) -> BaseException:
    while isinstance(errors, BaseExceptionGroup):
        errors = errors.exceptions[0]
    return errors

"""Brings the files of a collection here: says first what they are, then fetches, checks and records each."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdscratch.errors import CannotWriteError, DataError
from sdscratch.files import FolderLock, read_json, sha256_of, write_json
from sdscratch.prepare.fetch.sources import RemoteFile, Source

FETCHED = "fetched.json"


@dataclass(frozen=True)
class Fetch:
    """What of a source is to come into the folder `out`."""

    source: Source
    out: Path
    files: list[RemoteFile]

    @property
    def todo(self) -> list[RemoteFile]:
        """Files that are not here yet, whole."""
        known = self._recorded()
        return [file for file in self.files if not self._is_here(file, known.get(file.name, {}))]

    @property
    def size(self) -> int:
        """Bytes that are still to come, as far as their number is known."""
        return sum(file.size or 0 for file in self.todo)

    def said(self) -> Iterator[str]:
        """What whoever starts it should know, line by line."""
        yield f"licence: {self.source.licence}"
        yield f"status: {self.source.status}"
        if self.source.notes:
            yield f"notes: {self.source.notes}"
        for file in self.files[:10]:
            yield f"  {file.name}  {size_in_words(file.size)}  sha256 {file.sha256 or 'not published'}"
        if len(self.files) > 10:
            yield f"  ... and {len(self.files) - 10} more"
        yield f"{len(self.files)} files, {len(self.todo)} of them to come: {size_in_words(self.size)} into {self.out}"

    def write(self, progress: Callable[[int, int], None] = lambda done, total: None) -> dict[str, Any]:
        """Fetch what is not here, check all that is new, and write fetched.json: name -> size and sha256.

        progress: called with the bytes that are there and those of all files, as far as their sizes are known.
        Raises DataError where a file cannot be had or is not what was published, CannotWriteError for a full disk,
        RunFolderError while another process fetches into `out`: two that go on with one half file would spoil it.
        """
        self._check_room()
        with FolderLock(self.out, "set another out=").held():
            return self._fetched(progress)

    def _fetched(self, progress: Callable[[int, int], None]) -> dict[str, Any]:
        record, total = self._recorded(), sum(file.size or 0 for file in self.files)
        waiting = self.todo
        done = total - sum(file.size or 0 for file in waiting)
        progress(done, total)
        for file in waiting:
            self.source.fetch(file, self.out, lambda count, before=done: progress(before + count, total))  # type: ignore[misc]
            record[file.name] = _checked(self.out / file.name, file)
            done += file.size or 0
            self._write(record)  # after each: whoever is stopped need not check the others again
        self._write(record)
        return record

    def _recorded(self) -> dict[str, Any]:
        found = read_json(self.out / FETCHED).get("files", {})
        return found if isinstance(found, dict) else {}

    def _is_here(self, file: RemoteFile, record: dict[str, Any]) -> bool:
        """Whether it was fetched and checked, and is still as long; and the source does not tell of another one."""
        path = self.out / file.name
        changed = (file.sha256 or record.get("sha256")) != record.get("sha256")
        expected = record.get("size") if file.size is None else file.size
        return bool(record) and not changed and path.is_file() and path.stat().st_size == record["size"] == expected

    def _write(self, record: dict[str, Any]) -> None:
        about = {"licence": self.source.licence, "status": self.source.status, "notes": self.source.notes}
        write_json(self.out / FETCHED, about | {"files": dict(sorted(record.items()))})

    def _check_room(self) -> None:
        existing = next(folder for folder in (self.out, *self.out.absolute().parents) if folder.exists())
        if (free := shutil.disk_usage(existing).free) < self.size:
            raise CannotWriteError(
                f"{self.out} has {size_in_words(free)} left, {size_in_words(self.size)} are to come: free some space, or "
                "fetch less, as by source.patterns=[...]"
            )


def size_in_words(size: int | None) -> str:
    """12 B, 3.4 MB, 1.2 TB; thousands, as disks are sold."""
    if size is None:
        return "unknown size"
    number, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def _checked(path: Path, file: RemoteFile) -> dict[str, Any]:
    """Its size and sha256. Raises DataError, and removes it, where it is not what was to come."""
    found = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    for what, expected in (("size", file.size), ("sha256", file.sha256)):
        if expected is not None and found[what] != expected:
            path.unlink()
            raise DataError(f"{path} came with {what} {found[what]}, expected {expected}: removed. Fetch it again")
    return found

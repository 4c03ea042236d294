"""A part of a folder of shards, kept as a folder of its own that holds no shards: which rows, and of what."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sdscratch.errors import DataError
from sdscratch.files import read_bytes, write_atomically, write_json

FORMAT = 1
SELECTION = "selection.json"
ROWS = "rows.npy"


@dataclass(frozen=True, eq=False)
class Selection:
    """Some samples of a folder of shards.

    source: that folder, relative to the one that the selection lies in, so that both may move together.
    source_fingerprint: of its content. where: the condition that the samples fit. total: samples in the whole source.
    rows: the numbers of the selected ones, int64, rising.
    """

    source: str
    source_fingerprint: str
    where: str
    total: int
    rows: np.ndarray

    @property
    def fingerprint(self) -> str:
        """Of the rows."""
        return hashlib.sha256(np.ascontiguousarray(self.rows, "<i8").tobytes()).hexdigest()

    def source_of(self, folder: Path) -> Path:
        """The folder of shards, for a selection that was read from `folder`. Raises DataError unless it is one."""
        source = Path(os.path.normpath(folder.resolve() / self.source))
        if not source.is_dir() or (source / SELECTION).exists():
            raise DataError(
                f"{folder} selects from {source}, where no folder of shards is. Put it back, or select again "
                "with `sdscratch data select`."
            )
        return source

    def require(self, folder: Path, fingerprint: str, total: int) -> None:
        """Raise DataError unless the source is still what this was selected from."""
        if (fingerprint, total) != (self.source_fingerprint, self.total):
            raise DataError(
                f"{self.source_of(folder)} has changed since {folder} was selected from it. Select again with "
                "`sdscratch data select` into another folder."
            )

    @classmethod
    def read(cls, folder: Path) -> Selection | None:
        """The selection in a folder; None where there is none. Raises DataError when it is damaged."""
        path = folder / SELECTION
        try:
            fields = json.loads(read_bytes(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is damaged ({error}). Delete {folder} and select again.") from error
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror or error}. Mend that, or move it away.") from error
        try:
            if fields["format"] != FORMAT:
                raise DataError(f"{path} has format {fields['format']!r}, this version reads {FORMAT}. Select again.")
            data = read_bytes(folder / ROWS)
            rows = np.load(io.BytesIO(data), allow_pickle=False)
            names = (str(fields["source"]), str(fields["source_fingerprint"]), str(fields["where"]))
            selection = cls(*names, int(fields["total"]), rows)
            whole = rows.dtype == np.int64 and rows.ndim == 1 and selection.fingerprint == fields["rows_sha256"]
        except (KeyError, TypeError, ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} is no whole selection ({error!r}). Delete {folder} and select again.") from error
        if not whole or not len(rows) or rows[0] < 0 or rows[-1] >= selection.total or (np.diff(rows) <= 0).any():
            raise DataError(f"{folder / ROWS} is damaged: its rows are not those of {SELECTION}. Select again.")
        return selection

    def write(self, folder: Path) -> None:
        """Rows first: a folder with selection.json is a finished one."""
        write_atomically(folder / ROWS, lambda file: np.save(file, self.rows.astype("<i8"), allow_pickle=False))
        fields = {
            "format": FORMAT,
            "source": self.source,
            "source_fingerprint": self.source_fingerprint,
            "where": self.where,
            "total": self.total,
            "selected": len(self.rows),
            "rows_sha256": self.fingerprint,
        }
        write_json(folder / SELECTION, fields)

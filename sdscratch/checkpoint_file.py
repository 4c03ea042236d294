"""One checkpoint: a file of tensors and plain values, and its side-car, written last, that says what must be in it."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from hashlib import file_digest, sha256
from pathlib import Path
from typing import IO, Any

from sdscratch.errors import CannotWriteError, RunFolderError
from sdscratch.files import check_file, crash_point, read_bytes, write_atomically, write_json


@dataclass(frozen=True)
class Checkpoint:
    """What the side-car says of a checkpoint: enough to choose one without opening it.

    val_loss: of the averaged network, lower is better; None where it was not measured at this step.
    """

    path: Path
    step: int
    samples_seen: int
    sha256: str
    size: int
    val_loss: float | None = None

    def __post_init__(self) -> None:
        """Raises TypeError for a side-car that holds something else than a checkpoint's."""
        numbers = (self.step, self.samples_seen, self.size)
        measured = self.val_loss is None or (isinstance(self.val_loss, int | float) and math.isfinite(self.val_loss))
        if not (all(type(number) is int for number in numbers) and isinstance(self.sha256, str) and measured):
            raise TypeError(f"{self.sidecar} holds no checkpoint's numbers")

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def has_its_size(self) -> bool:
        """Whether the file is there, with as many bytes as were written: what can be said without reading it."""
        try:
            return self.path.stat().st_size == self.size
        except OSError:
            return False

    def is_intact(self) -> bool:
        """Whether the file is, byte for byte, the one that was written. Raises RunFolderError where it cannot be read."""
        try:
            check_file(self.path)
            with self.path.open("rb") as file:
                fits = os.fstat(file.fileno()).st_size == self.size
                return fits and file_digest(file, "sha256").hexdigest() == self.sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise unreadable(self.path, error) from error

    def load(self, mapped: bool = False) -> dict[str, Any]:
        """The checkpoint's tensors and plain values, on the CPU. Nothing in it can run code.

        mapped: read tensors only when they are looked at, for those who want the plain values.
        """
        return load_tensors(self.path, mapped)


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or would be."""
    return folder / f"step_{step:08d}.ckpt"


def checkpoints_in(folder: Path) -> list[Checkpoint]:
    """All with a side-car that fits their name, oldest first. Not yet verified: see Checkpoint.is_intact."""
    found = []
    for path in files_in(folder, "step_*.ckpt"):
        with suppress(OSError, ValueError, TypeError, RecursionError):
            about = json.loads(read_bytes(path.with_name(path.name + ".json")))
            checkpoint = Checkpoint(path=path, **about)
            if path == checkpoint_path(folder, checkpoint.step):
                found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def files_in(folder: Path, pattern: str) -> list[Path]:
    """Of a folder of checkpoints, in no order; none where it is none. Raises RunFolderError where it cannot be read."""
    try:
        return [path for path in folder.iterdir() if fnmatch(path.name, pattern)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RunFolderError(f"cannot read {folder}: {error.strerror or error}") from error


def remove(path: Path) -> None:
    """Remove a file, which may be gone already. Raises CannotWriteError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise CannotWriteError(f"cannot remove {path}: {error.strerror or error}") from error


def forget_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps, newest first."""
    for checkpoint in reversed(checkpoints_in(folder)):
        if checkpoint.step > step:
            remove(checkpoint.sidecar)
            remove(checkpoint.path)


def write_checkpoint(
    path: Path, content: Mapping[str, Any], step: int, samples_seen: int, val_loss: float | None = None
) -> Checkpoint:
    """Write a checkpoint and then its side-car. Raises CannotWriteError, and leaves what was there as it was."""
    import torch

    seen = _Seen()
    write_atomically(path, lambda file: torch.save(content, seen.on_the_way_to(file)), job="save")  # type: ignore[arg-type]
    checkpoint = Checkpoint(path, step, samples_seen, seen.digest.hexdigest(), seen.size, val_loss)
    about = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
    write_json(checkpoint.sidecar, about)
    crash_point("save:sidecar")
    return checkpoint


def load_tensors(path: Path, mapped: bool = False) -> dict[str, Any]:
    """What torch.save has put into a file, as long as that is tensors and plain values. Raises RunFolderError otherwise."""
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path} is gone: its run has gone on meanwhile, and removed it. Choose a newer one"
        ) from error
    except OSError:
        raise
    except Exception as error:  # a file that is none of torch's, or would run code, raises nearly anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"loading it would call {named[1]}" if named else type(error).__name__
        raise RunFolderError(
            f"{path} holds more than tensors and plain values, or nothing of the kind ({reason}). No run has written it: "
            "delete it, and go on from an older one"
        ) from error


def best_first(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """Those whose validation loss is known, the lowest first; of equal ones the newer first."""
    measured = [(c.val_loss, -c.step, c) for c in checkpoints if c.val_loss is not None]
    return [checkpoint for _, _, checkpoint in sorted(measured, key=lambda known: known[:2])]


@dataclass(frozen=True)
class Retention:
    """Which checkpoints stay: the newest `last`, every step that is a multiple of `every`, the `best` by validation loss."""

    last: int = 2
    every: int | None = None
    best: int = 1

    def kept(self, checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
        """Of `checkpoints`, oldest first. Decided from what the side-cars say, so kills and resumes change nothing."""
        best = best_first(checkpoints)[: self.best]
        milestones = [c for c in checkpoints if self.every and c.step % self.every == 0]
        return [c for c in checkpoints if c in checkpoints[-self.last :] or c in milestones or c in best]


def unreadable(path: Path, error: OSError) -> RunFolderError:
    """What to raise where a file of a checkpoint is there and cannot be read."""
    return RunFolderError(
        f"{path} cannot be read ({error.strerror or error}), which does not mean that it is damaged. Make it readable "
        "again; or move that checkpoint elsewhere, to do without it"
    )


class _Seen:
    """Size and sha256 of what is written to a file, whatever the disk makes of it."""

    def __init__(self) -> None:
        self.size, self.digest = 0, sha256()

    def on_the_way_to(self, file: IO[bytes]) -> _Seen:
        """This object as a file, which hands everything on to `file`."""
        self.file = file
        return self

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

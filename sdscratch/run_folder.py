"""The folder of one run: its names, lock, state, metrics and checkpoints, as anyone may read them and training writes them.

    config.yaml overrides.txt environment.json state.json metrics.csv
    checkpoints/step_00001000.ckpt (+ .json side-car)   model/   samples/step_*/   plots/   wandb/

Files appear whole or not at all: written beside their place, synced, renamed. A checkpoint is valid when its side-car,
which is written last, fits it.
"""

from __future__ import annotations

import csv
import fcntl
import json
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from sdscratch.errors import CannotWriteError, RunFolderError
from sdscratch.files import write_atomically, write_json

CHECKPOINT_NAME = re.compile(r"step_(\d{8})\.ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """What the side-car says of a checkpoint: enough to choose one without opening it."""

    path: Path
    step: int
    samples_seen: int
    sha256: str
    size: int

    @property
    def sidecar(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def is_intact(self) -> bool:
        """Whether the file is, byte for byte, the one that was written."""
        try:
            if self.path.stat().st_size != self.size:
                return False
            with self.path.open("rb") as file:
                return file_digest(file, "sha256").hexdigest() == self.sha256
        except OSError:
            return False

    def load(self) -> dict[str, Any]:
        """The checkpoint's tensors and plain values, on the CPU. Nothing in it can run code."""
        import torch

        return torch.load(self.path, map_location="cpu", weights_only=True)


class RunFolder:
    """One run's folder. Making the object touches nothing; `create` makes the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint_folder = self.path / "checkpoints"
        self.model_folder = self.path / "model"
        self.metrics_file = self.path / "metrics.csv"
        self.config_file = self.path / "config.yaml"
        self.plots = self.path / "plots"
        self._lock: BinaryIO | None = None

    def create(self) -> None:
        """Make the folder, and find out now rather than after the first thousand steps whether it can be written."""
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoint_folder / ".probe"
            probe.write_bytes(b"writable")
            probe.unlink()
        except OSError as error:
            raise CannotWriteError(f"cannot write into {self.path}: {error.strerror or error}") from error

    def lock(self) -> None:
        """Keep other processes out until this one ends. Forked loader workers do not hold the lock."""
        self._lock = (self.path / ".lock").open("a+b")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.seek(0)
            holder = self._lock.read().decode() or "unknown"
            self._lock.close()
            self._lock = None
            raise RunFolderError(
                f"{self.path} is in use by process {holder}. Wait for it, or choose another name="
            ) from error
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()).encode())
        self._lock.flush()

    def unlock(self) -> None:
        """Let others in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    # State: what the run is doing, for people, `status` commands and pages.

    def state(self) -> dict[str, Any]:
        """The content of state.json, or {} where there is no run."""
        try:
            return json.loads((self.path / "state.json").read_text())
        except FileNotFoundError:
            return {}

    def set_state(self, **changes: Any) -> None:
        """Merge `changes` into state.json: status (running | done | failed), stage, step, samples_seen."""
        write_json(self.path / "state.json", {**self.state(), **changes})

    def holds_a_run(self) -> bool:
        """Whether training has begun here."""
        return bool(self.state()) or any(self.checkpoint_folder.glob("step_*.ckpt"))

    # Checkpoints

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints with a readable side-car, oldest first. Not yet verified: see Checkpoint.is_intact."""
        found = []
        for path in sorted(self.checkpoint_folder.glob("step_*.ckpt")):
            with suppress(OSError, ValueError, TypeError):
                about = json.loads(path.with_name(path.name + ".json").read_text())
                found.append(Checkpoint(path=path, **about))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def newest_intact_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from. None where none was ever written; RunFolderError where all are damaged."""
        known = self.checkpoints()
        for checkpoint in reversed(known):
            if checkpoint.is_intact():
                return checkpoint
            print(f"{checkpoint.path} is damaged (its checksum does not fit): trying an older one", flush=True)
        if known:
            raise RunFolderError(f"none of the {len(known)} checkpoints in {self.checkpoint_folder} is intact")
        return None

    def write_checkpoint(self, content: Mapping[str, Any], step: int, samples_seen: int) -> Checkpoint:
        """Write a checkpoint and then its side-car."""
        import torch

        path = self.checkpoint_folder / f"step_{step:08d}.ckpt"
        path.with_name(path.name + ".json").unlink(missing_ok=True)  # a rewritten file must not look valid meanwhile
        write_atomically(path, lambda file: torch.save(content, file))
        with path.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
        checkpoint = Checkpoint(path, step, samples_seen, sha256, path.stat().st_size)
        about = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
        write_json(checkpoint.sidecar, about)
        return checkpoint

    def prune_checkpoints(self, keep_last: int, keep_every: int | None) -> None:
        """Delete all but the newest `keep_last` and every step that is a multiple of `keep_every`.

        Decided from the folder alone, so that kills and resumes leave nothing behind.
        """
        known = self.checkpoints()
        for checkpoint in known[: len(known) - keep_last]:
            if not (keep_every and checkpoint.step % keep_every == 0):
                checkpoint.sidecar.unlink(missing_ok=True)
                checkpoint.path.unlink(missing_ok=True)
        valid = {checkpoint.path for checkpoint in known}
        for path in self.checkpoint_folder.iterdir():  # what a crash has left: halves, and files without side-car
            if path.suffix == ".tmp" or (CHECKPOINT_NAME.fullmatch(path.name) and path not in valid):
                path.unlink(missing_ok=True)

    # Metrics

    def read_metrics(self) -> list[dict[str, float]]:
        """metrics.csv as rows of numbers; a column that a row does not have is absent from it."""
        if not self.metrics_file.exists():
            return []
        with self.metrics_file.open(newline="") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add one row; `step` comes first. A column seen for the first time is added to the header, the rest stays as it is."""
        header = self._metrics_header()
        new = [name for name in row if name not in header]
        if new or not header:
            self._rewrite_metrics(["step", *(name for name in [*header, *new] if name != "step")])
            header = self._metrics_header()
        with self.metrics_file.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow([_text(row.get(name)) for name in header])

    def cut_metrics(self, step: int) -> None:
        """Forget rows after `step`, and a last line that a crash has torn: the run goes on from there."""
        self._rewrite_metrics(self._metrics_header(), lambda row: row["step"] <= step)

    def _metrics_header(self) -> list[str]:
        if not self.metrics_file.exists():
            return []
        with self.metrics_file.open(newline="") as file:
            return next(csv.reader(file), [])

    def _rewrite_metrics(self, header: list[str], keep: Callable[[dict[str, float]], bool] = lambda row: True) -> None:
        if not header:
            return
        text = StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header)
        for row in self._whole_rows():
            if keep(row):
                writer.writerow([_text(row.get(name)) for name in header])
        write_atomically(self.metrics_file, lambda file: file.write(text.getvalue().encode()))

    def _whole_rows(self) -> list[dict[str, float]]:
        if not self.metrics_file.exists():
            return []
        lines = self.metrics_file.read_text().splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(whole)]


def _text(value: float | int | None) -> str:
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))

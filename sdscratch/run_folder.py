"""The folder of one run: its names, lock, state, metrics and checkpoints, as anyone may read them and training writes them.

    config.yaml recipe.yaml overrides.txt environment.json state.json metrics.csv bad_steps.jsonl
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
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest
from io import StringIO
from pathlib import Path
from typing import Any, BinaryIO

from sdscratch.errors import CannotWriteError, RunFolderError
from sdscratch.files import write_atomically, write_json

CHECKPOINT_FILE = re.compile(r"\.?step_\d+\.ckpt(\.json)?(\.\d+\.tmp)?")  # with its side-car, and halves of both


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

    def load(self, mapped: bool = False) -> dict[str, Any]:
        """The checkpoint's tensors and plain values, on the CPU. Nothing in it can run code.

        mapped: read tensors only when they are looked at, for those who want the plain values.
        """
        import torch

        return torch.load(self.path, map_location="cpu", weights_only=True, mmap=mapped)


class RunFolder:
    """One run's folder. Making the object touches nothing; `create` makes the folder."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoint_folder = self.path / "checkpoints"
        self.model_folder = self.path / "model"
        self.metrics_file = self.path / "metrics.csv"
        self.config_file = self.path / "config.yaml"
        self.recipe_file = self.path / "recipe.yaml"
        self.plots = self.path / "plots"
        self._lock: BinaryIO | None = None

    def create(self) -> None:
        """Make the folder, and find out now rather than after the first thousand steps whether it can be written."""
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoint_folder / ".probe"
            probe.write_bytes(b"writable")
            probe.unlink(missing_ok=True)  # another process may be trying as well
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

    @property
    def is_locked(self) -> bool:
        """By this process."""
        return self._lock is not None

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
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def set_state(self, **changes: Any) -> None:
        """Merge `changes` into state.json: status (running | done | failed), stage, step, samples_seen."""
        write_json(self.path / "state.json", {**self.state(), **changes})

    def holds_a_run(self) -> bool:
        """Whether training has begun here."""
        return bool(self.state()) or any(self.checkpoint_folder.glob("step_*.ckpt"))

    # Checkpoints

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return self.checkpoint_folder / f"step_{step:08d}.ckpt"

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints with a side-car that fits their name, oldest first. Not yet verified: see Checkpoint.is_intact."""
        found = []
        for path in self.checkpoint_folder.glob("step_*.ckpt"):
            with suppress(OSError, ValueError, TypeError):
                about = json.loads(path.with_name(path.name + ".json").read_text())
                checkpoint = Checkpoint(path=path, **about)
                if path == self.checkpoint_path(checkpoint.step):
                    found.append(checkpoint)
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def newest_intact_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from. None where none was ever finished; RunFolderError where all are damaged or gone."""
        known = self.checkpoints()
        for checkpoint in reversed(known):
            if checkpoint.is_intact():
                return checkpoint
            print(f"{checkpoint.path} is damaged (its checksum does not fit): trying an older one", flush=True)
        if known or self.state().get("step"):
            raise RunFolderError(
                f"{self.checkpoint_folder} holds no intact checkpoint, but the run has been at step "
                f"{self.state().get('step', known[-1].step if known else 0)}. Put one back, or start again under another name="
            )
        return None

    def write_checkpoint(self, content: Mapping[str, Any], step: int, samples_seen: int) -> Checkpoint:
        """Write a checkpoint and then its side-car."""
        import torch

        path = self.checkpoint_path(step)
        path.with_name(path.name + ".json").unlink(missing_ok=True)  # a rewritten file must not look valid meanwhile
        write_atomically(path, lambda file: torch.save(content, file))
        with path.open("rb") as file:
            sha256 = file_digest(file, "sha256").hexdigest()
        checkpoint = Checkpoint(path, step, samples_seen, sha256, path.stat().st_size)
        about = {name: value for name, value in asdict(checkpoint).items() if name != "path"}
        write_json(checkpoint.sidecar, about)
        return checkpoint

    def prune_checkpoints(self, step: int, keep_last: int, keep_every: int | None) -> None:
        """Of a run that is at `step`, keep the newest `keep_last` and every step that is a multiple of `keep_every`.

        Decided from the folder alone, so that kills and resumes leave nothing behind: halves, files without side-car, and
        checkpoints beyond `step`, which are damaged, or the run would have gone on from them.
        """
        known = [checkpoint for checkpoint in self.checkpoints() if checkpoint.step <= step]
        kept = [c for c in known if c in known[-keep_last:] or (keep_every and c.step % keep_every == 0)]
        names = {path.name for checkpoint in kept for path in (checkpoint.path, checkpoint.sidecar)}
        for path in self.checkpoint_folder.iterdir():
            if CHECKPOINT_FILE.fullmatch(path.name) and path.name not in names:
                path.unlink(missing_ok=True)

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove those of a way that the run has turned back from, newest first."""
        for checkpoint in reversed(self.checkpoints()):
            if checkpoint.step > step:
                checkpoint.sidecar.unlink(missing_ok=True)
                checkpoint.path.unlink(missing_ok=True)

    # Metrics

    def read_metrics(self) -> list[dict[str, float]]:
        """metrics.csv as rows of numbers; a column that a row does not have is absent from it."""
        return [{name: float(value) for name, value in row.items() if value} for row in self._rows()]

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add one row; `step` comes first. A column seen for the first time is added to the header, the rest stays as it is."""
        header = self._metrics_header()
        if new := [name for name in row if name not in header]:
            header = ["step", *(name for name in [*header, *new] if name != "step")]
            self._write_metrics(header, self._rows())
        with self.metrics_file.open("a", newline="") as file:
            texts = [repr(row[name]) if name in row else "" for name in header]
            csv.writer(file, lineterminator="\n").writerow(texts)

    def cut_metrics(self, step: int) -> None:
        """Forget rows after `step`, and a last line that a crash has torn: the run goes on from there."""
        if header := self._metrics_header():
            self._write_metrics(header, [row for row in self._rows() if int(row["step"]) <= step])

    def append_bad_step(self, about: Mapping[str, Any]) -> None:
        """Add a line to bad_steps.jsonl, unless it is there: a resumed run meets the same bad step again."""
        file = self.path / "bad_steps.jsonl"
        line = json.dumps(about)
        if not file.exists() or line not in file.read_text().splitlines():
            with file.open("a") as out:
                out.write(line + "\n")

    def _metrics_header(self) -> list[str]:
        if not self.metrics_file.exists():
            return []
        with self.metrics_file.open(newline="") as file:
            return next(csv.reader(file), [])

    def _write_metrics(self, header: list[str], rows: list[dict[str, str]]) -> None:
        text = StringIO()
        writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_file, lambda file: file.write(text.getvalue().encode()))

    def _rows(self) -> list[dict[str, str]]:
        """The rows as text. A last line without its end is torn, or being written just now: it does not count."""
        if not self.metrics_file.exists():
            return []
        text = self.metrics_file.read_text()
        return list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))

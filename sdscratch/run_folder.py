"""The folder of one run: its names, lock, state, metrics and checkpoints, as anyone may read them and training writes them.

    config.yaml recipe.yaml overrides.txt environment.json state.json lineage.json objective.json metrics.csv bad_steps.jsonl
    checkpoints/step_00001000.ckpt (+ .json side-car)   model/   samples/step_*/   plots/   wandb/

Files appear whole or not at all: written beside their place, synced, renamed. A checkpoint is valid when its side-car,
which is written last, fits it.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from glob import glob
from io import StringIO
from pathlib import Path
from typing import Any

from sdscratch.checkpoint_file import (
    Checkpoint,
    Retention,
    checkpoint_path,
    checkpoints_in,
    files_in,
    forget_after,
    remove,
    unreadable,
    write_checkpoint,
)
from sdscratch.console import warn
from sdscratch.errors import CannotWriteError, ConfigError, RunFolderError
from sdscratch.files import (
    FolderLock,
    check_file,
    crash_point,
    is_text,
    read_bytes,
    read_json,
    remove_halves,
    write_atomically,
    write_json,
)

LONGEST_LINE = 100_000  # of metrics.csv
STEP = re.compile(r"[0-9]{1,18}")
CHECKPOINT_FILE = re.compile(r"\.?step_\d+\.ckpt(\.json)?(\.\d+\.tmp)?")  # with its side-car, and halves of both


def folder_below(root: str, name: object) -> Path:
    """ROOT/NAME, for a run or a curriculum. Raises ConfigError for names that lead out of `root`, or nowhere."""
    path = Path(str(name))
    if not isinstance(name, str | int | float) or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ConfigError(f"name={name} is no folder below {root}: expected one such as try1")
    return Path(root) / path


def runs_below(root: Path) -> dict[str, RunFolder]:
    """Every run by its name: its folder below `root`, or that and the folder of those that belong together with it."""
    patterns = ("*/state.json", "*/*/state.json")  # pathlib's glob fails where a folder is removed meanwhile
    states = [state for pattern in patterns for state in glob(pattern, root_dir=root, include_hidden=True)]
    folders = sorted((root / state).parent for state in states)
    return {folder.relative_to(root).as_posix(): RunFolder(folder) for folder in folders if is_text(folder)}


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
        self._lock = FolderLock(self.path)

    def create(self) -> None:
        """Make the folder, and find out now rather than after the first thousand steps whether it can be written."""
        try:
            self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            probe = self.checkpoint_folder / ".probe"
            probe.write_bytes(b"writable")
            probe.unlink(missing_ok=True)  # another process may be trying as well
        except OSError as error:
            raise CannotWriteError(
                f"cannot write into {error.filename or self.path}: {error.strerror or error}"
            ) from error

    def lock(self) -> None:
        """Keep other processes out until this one ends. Forked loader workers do not hold the lock.

        What earlier ones had half written when they were killed is removed.
        """
        self._lock.take()
        for folder in (self.path, self.checkpoint_folder):
            remove_halves(folder)

    @property
    def is_locked(self) -> bool:
        """By this process."""
        return self._lock.is_held

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    # State: what the run is doing, for people, `status` commands and pages.

    def state(self) -> dict[str, Any]:
        """The content of state.json, or {} where there is no run or the file is damaged: the run can do without."""
        state = self._read_json("state.json")
        return state if _is_state(state) else {}

    def status(self) -> str | None:
        """running | stopped | failed | done; None where there is no run. One that was killed while it ran is stopped."""
        status: str | None = self.state().get("status")
        return "stopped" if status == "running" and not self._lock.is_taken else status

    def set_state(self, **changes: Any) -> None:
        """Merge `changes` into state.json: status (running | stopped | failed | done), stage, step, samples_seen."""
        write_json(self.path / "state.json", {**self.state(), **changes})

    def holds_a_run(self) -> bool:
        """Whether training has begun here."""
        return bool(self.state()) or bool(files_in(self.checkpoint_folder, "step_*.ckpt"))

    # Checkpoints

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of a step is, or would be."""
        return checkpoint_path(self.checkpoint_folder, step)

    def checkpoints(self) -> list[Checkpoint]:
        """All checkpoints with a side-car that fits their name, oldest first. Not yet verified: see Checkpoint.is_intact."""
        return checkpoints_in(self.checkpoint_folder)

    def newest_intact_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to go on from. None where none was ever finished; RunFolderError where all are damaged or
        gone, and where one cannot be read: it may be as good as ever once the disk or the rights are back.
        """
        self._check_side_cars()
        known = self.checkpoints()
        for checkpoint in reversed(known):
            if checkpoint.is_intact():
                return checkpoint
            if not checkpoint.sidecar.exists():  # a run that goes on has removed it, and has newer ones
                return self.newest_intact_checkpoint()
            warn(f"{checkpoint.path} is damaged (its checksum does not fit): trying an older one")
        step = self.state().get("step") or max((checkpoint.step for checkpoint in known), default=0)
        if step or files_in(self.checkpoint_folder, "step_*.ckpt.json"):  # side-cars are written last
            raise RunFolderError(
                f"{self.checkpoint_folder} holds no intact checkpoint, but the run has been "
                f"{f'at step {step}' if step else 'saved'}. Put one back, or start again under another name="
            )
        return None

    def _check_side_cars(self) -> None:
        """Raise RunFolderError where one is there that cannot be read: its checkpoint may be good all the same."""
        for path in files_in(self.checkpoint_folder, "step_*.ckpt.json"):
            try:
                read_bytes(path)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise unreadable(path, error) from error

    def write_checkpoint(
        self, content: Mapping[str, Any], step: int, samples_seen: int, val_loss: float | None = None
    ) -> Checkpoint:
        """Write a checkpoint and then its side-car. Raises CannotWriteError, and leaves all checkpoints as they were."""
        return write_checkpoint(self.checkpoint_path(step), content, step, samples_seen, val_loss)

    def prune_checkpoints(self, step: int, retention: Retention) -> list[Path]:
        """Of a run that is at `step`, keep what `retention` says. Returns what was removed.

        Decided from the folder alone, so that kills and resumes leave nothing behind: halves, files without side-car, and
        checkpoints beyond `step`, which are damaged, or the run would have gone on from them. Call it when the checkpoint
        of `step` is whole. Side-cars go first: what is left of a removal that was cut short is no checkpoint.
        Raises RunFolderError, and removes nothing, where a side-car cannot be read; CannotWriteError where a file stays.
        """
        self._check_side_cars()
        kept = retention.kept([checkpoint for checkpoint in self.checkpoints() if checkpoint.step <= step])
        names = {path.name for checkpoint in kept for path in (checkpoint.path, checkpoint.sidecar)}
        removed = []
        for path in sorted(files_in(self.checkpoint_folder, "*"), reverse=True):
            if CHECKPOINT_FILE.fullmatch(path.name) and path.name not in names and path.is_file():
                remove(path)
                crash_point("save:retention")
                removed.append(path)
        return removed

    # Lineage: where the first weights came from, and what was changed between sessions.

    def lineage(self) -> dict[str, Any]:
        """The content of lineage.json, or {} before training and where the file is damaged."""
        lineage = self._read_json("lineage.json")
        return lineage if _is_lineage(lineage) else {}

    def set_lineage(self, **changes: Any) -> None:
        """Merge `changes` into lineage.json: init_from (null: random weights), changes (step, key, old, new)."""
        write_json(self.path / "lineage.json", {**self.lineage(), **changes})

    # Objective: the one number of a finished run that compares with other runs'.

    def objective(self) -> dict[str, Any]:
        """The content of objective.json, {} before the run is finished: metric, value (lower is better), weights, step, ..."""
        return self._read_json("objective.json")

    def set_objective(self, metric: str, value: float | None, step: int, samples_seen: int) -> None:
        """Write it. value: of the averaged network, unweighted, at `step`; None where it was not measured or not finite."""
        about = {"metric": metric, "value": value, "weights": "ema", "unweighted": True}
        write_json(self.path / "objective.json", {**about, "step": step, "samples_seen": samples_seen})

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove those of a way that the run has turned back from, newest first."""
        forget_after(self.checkpoint_folder, step)

    # Metrics

    def read_metrics(self) -> list[dict[str, float]]:
        """metrics.csv as rows of numbers; a column that a row does not have, or holds no number in, is absent from it."""
        rows = [{name: as_number(value) for name, value in row.items()} for row in self._rows()]
        return [{name: value for name, value in row.items() if value is not None} for row in rows]

    def append_metrics(self, row: Mapping[str, float]) -> None:
        """Add one row; `step` comes first. A column seen for the first time is added to the header, the rest stays as it is.

        Raises CannotWriteError, and leaves the file as it was.
        """
        header = self._metrics_header()
        if new := [name for name in row if name not in header]:
            header = ["step", *(name for name in [*header, *new] if name != "step")]
            self._write_metrics(header, self._rows())
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerow([repr(row[name]) if name in row else "" for name in header])
        size = self.metrics_file.stat().st_size
        try:
            with self.metrics_file.open("ab") as file:
                file.write(text.getvalue().encode())
        except OSError as error:
            with suppress(OSError):  # what came through is no row
                os.truncate(self.metrics_file, size)
            raise CannotWriteError(f"cannot write {self.metrics_file}: {error.strerror or error}") from error

    def cut_metrics(self, step: int) -> None:
        """Forget rows after `step`, and what is no row, as a last line that a crash has torn: the run goes on from there."""
        if header := self._metrics_header():
            if "step" not in header:
                raise self._no_table()
            self._write_metrics(header, [row for row in self._rows() if int(row["step"]) <= step])

    def append_bad_step(self, about: Mapping[str, Any]) -> None:
        """Add a line to bad_steps.jsonl, unless it is there: a resumed run meets the same bad step again.

        Raises OSError.
        """
        file = self.path / "bad_steps.jsonl"
        line = json.dumps(about)
        if not file.exists() or line.encode() not in read_bytes(file).splitlines():
            with file.open("a") as out:
                out.write(line + "\n")

    def _metrics_header(self) -> list[str]:
        try:
            check_file(self.metrics_file)
            with self.metrics_file.open("rb") as file:
                line = file.readline(LONGEST_LINE)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot_read(self.metrics_file, error) from error
        if len(line) == LONGEST_LINE:
            raise self._no_table()
        return next(csv.reader(line.decode(errors="replace").splitlines()[:1]), [])  # as `_rows` ends lines

    def _no_table(self) -> RunFolderError:
        return RunFolderError(f"{self.metrics_file} is no table of metrics: move it away, and go on")

    def _write_metrics(self, header: list[str], rows: list[dict[str, str]]) -> None:
        text = StringIO()
        writer = csv.DictWriter(text, header, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.metrics_file, lambda file: file.write(text.getvalue().encode()))

    def _rows(self) -> list[dict[str, str]]:
        """The rows as text. A last line without its end is torn, or being written just now: it does not count.

        Neither does anything from a NUL on, which is what some file systems make of the end when the power goes.
        """
        try:
            text = read_bytes(self.metrics_file).decode(errors="replace").partition("\0")[0]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot_read(self.metrics_file, error) from error
        header, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
        names = next(csv.reader([header[:LONGEST_LINE]]), [])
        return [row for line in lines if (row := as_row(names, line))]

    def _read_json(self, name: str) -> dict[str, Any]:
        try:
            return read_json(self.path / name)
        except OSError as error:
            raise _cannot_read(self.path / name, error) from error


def _cannot_read(path: Path, error: OSError) -> RunFolderError:
    return RunFolderError(f"cannot read {path}: {error.strerror or error}")


def _is_state(state: Mapping[str, Any]) -> bool:
    """Whether what a run goes on by is in it as `set_state` has written it."""
    rewinds = state.get("rewinds", [])
    return (
        state.get("status") in (None, "running", "stopped", "failed", "done")
        and str(state.get("stage", "none")).isidentifier()
        and type(state.get("max_steps", 0)) is int
        and type(state.get("step", 0)) is int
        and type(state.get("samples_seen", 0)) is int
        and isinstance(rewinds, list)
        and all(isinstance(rewind, dict) and _is_range(rewind.get("skipped")) for rewind in rewinds)
    )


def _is_lineage(lineage: Mapping[str, Any]) -> bool:
    """Whether it says where weights came from, and what changed when, as `set_lineage` was told to."""
    origin, changes = lineage.get("init_from"), lineage.get("changes", [])
    return (
        (origin is None or isinstance(origin, dict))
        and isinstance(changes, list)
        and all(isinstance(change, dict) and type(change.get("step")) is int for change in changes)
    )


def _is_range(value: object) -> bool:
    return isinstance(value, list) and [type(number) for number in value] == [int, int]


def as_row(names: list[str], line: str) -> dict[str, str] | None:
    """The cells of a line of metrics.csv. None where it is too long, or has too many of them or no number of steps."""
    cells = line.split(",") if len(line) < LONGEST_LINE else []
    row = dict(zip(names, cells, strict=False))
    return row if len(cells) <= len(names) and STEP.fullmatch(row.get("step", "")) else None


def as_number(text: str | None) -> float | None:
    """None where it is none."""
    try:
        return float(text or "")
    except ValueError:
        return None

"""The folder of a curriculum: which phases are done, and what each took over from the one before.

    manifest.json: {"phases": [{name, status, run, carried, samples_seen, data, metrics}, ...]}

It is written whole at two moments of each phase, when what it takes over is decided and when it is finished, and at no other:
whoever is killed in between finds it as it was before or as it is after.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sdscratch.checkpoint_file import best_first
from sdscratch.errors import RunFolderError
from sdscratch.files import FolderLock, read_bytes, remove_halves, write_json
from sdscratch.run_folder import RunFolder

Status = Literal["pending", "running", "done", "stale"]
KINDS = {
    "name": str,
    "run": str | None,
    "carried": dict | None,
    "samples_seen": int | None,
    "data": dict | None,
    "metrics": dict | None,
}
"""Of the values of an entry."""


@dataclass(frozen=True)
class Entry:
    """What the manifest says of a phase.

    name: its configuration's. status: stale is what was begun from something that has been trained again since. run: its run
    folder. carried: the checkpoint that it took over ("from", "step", "samples_seen", "sha256"), what of it ("weights",
    "optimizer", "ema"), and the models that earlier phases left for it ("vae", "text_encoder"); null: nothing. samples_seen:
    after it, over all phases that its weights went through. data: "samples" and "fingerprint". metrics: see `measures`.
    """

    name: str
    status: Status = "pending"
    run: str | None = None
    carried: dict[str, Any] | None = None
    samples_seen: int | None = None
    data: dict[str, Any] | None = None
    metrics: dict[str, float] | None = None

    def has_learnt(self) -> bool:
        """Whether it is done, or is running and has a checkpoint to go on from."""
        begun = self.status == "running" and self.run is not None
        return self.status == "done" or (begun and bool(RunFolder(str(self.run)).checkpoints()))

    def builds_on(self, other: Entry) -> bool:
        """Whether it took over something that lies in the other's run."""
        taken = [(self.carried or {}).get(name) for name in ("from", "vae", "text_encoder")]
        return other.run is not None and any(Path(path).is_relative_to(other.run) for path in taken if path)


class CurriculumFolder:
    """curricula/NAME. Making the object touches nothing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "manifest.json"
        self._lock = FolderLock(path)

    def lock(self) -> None:
        """Make the folder, and keep other processes out of it. What killed ones had half written is removed."""
        self._lock.take()
        remove_halves(self.path)

    def unlock(self) -> None:
        """Let others in."""
        self._lock.release()

    def entries(self) -> dict[str, Entry]:
        """By name, in their order; {} before the first phase. Raises RunFolderError for a manifest that is damaged."""
        try:
            content = json.loads(read_bytes(self.manifest_file))
            if not isinstance(content["phases"], list):
                raise TypeError("phases is no list")
            entries = [_entry(about) for about in content["phases"]]
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise RunFolderError(f"cannot read {self.manifest_file}: {error.strerror or error}") from error
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise RunFolderError(
                f"{self.manifest_file} is damaged ({error}). Put it back, or choose another name="
            ) from error
        return {entry.name: entry for entry in entries}

    def write(self, entries: Mapping[str, Entry], moment: str) -> None:
        """Replace the manifest. moment: its name in crash points, see sdscratch.files.write_atomically."""
        write_json(self.manifest_file, {"phases": [asdict(entry) for entry in entries.values()]}, job=moment)


def measures(run: RunFolder) -> dict[str, float]:
    """Of a finished run: its last `train/loss` and `val/loss`, and the best validation loss of a checkpoint that is kept.

    Of this run alone: another phase has other data and another weighting.
    """
    rows = run.read_metrics()
    last: dict[str, float] = {name: row[name] for row in rows for name in ("train/loss", "val/loss") if name in row}
    if best := best_first(run.checkpoints())[:1]:
        assert best[0].val_loss is not None
        last |= {"best_val_loss": best[0].val_loss, "best_step": best[0].step}
    return last


def trained_on(run: RunFolder) -> dict[str, Any]:
    """Of a finished run: how many samples, and their fingerprint."""
    from sdscratch.interop.diffusers_folder import read_about  # which takes seconds, and is not for everyone

    data = read_about(run.model_folder).get("data", {})
    return {name: data.get(name) for name in ("samples", "fingerprint")}


def set_aside(run: RunFolder) -> Path:
    """Give the folder of a stale run another name, so that its place is free. Returns it.

    Raises RunFolderError while another process trains there: it would go on writing to the old name.
    """
    number = 1
    while (aside := run.path.with_name(f"{run.path.name}.stale{number}")).exists():
        number += 1
    run.lock()
    try:
        run.path.rename(aside)
    finally:
        run.unlock()
    return aside


def _entry(about: Mapping[str, Any]) -> Entry:
    """Raises TypeError, ValueError or KeyError for what `CurriculumFolder.write` has not written."""
    entry = Entry(**{field.name: about[field.name] for field in fields(Entry)})
    if entry.status not in get_args(Status):
        raise ValueError(f"{entry.name} is {entry.status!r}")
    for name, kind in KINDS.items():
        if not isinstance(value := getattr(entry, name), kind):
            raise TypeError(f"{name} of {entry.name} is {value!r}")
    carried = entry.carried or {}
    how = ("from", "weights", "optimizer", "ema") if "from" in carried else ()
    models = [name for name in ("vae", "text_encoder") if name in carried]
    if not all(isinstance(carried.get(name), str) for name in (*how, *models)):
        raise TypeError(f"carried of {entry.name} is {carried}")
    return entry

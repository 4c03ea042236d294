"""Tars of WebDataset's kind, made elsewhere, as a folder of shards: all is checked, nothing is copied or changed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sdscratch.data.captions import captions_of, record_of
from sdscratch.data.images import image_member, open_image
from sdscratch.data.index import OpenFiles, ShardIndex, samples_of
from sdscratch.data.manifest import Manifest, Shard
from sdscratch.data.shards import BAD, KEY, KEY_IN_WORDS, UNFINISHED, Members
from sdscratch.errors import DataError, check_choice
from sdscratch.files import LOCK, FolderLock, read_json, remove_halves, sha256_of, walk, write_atomically, write_json
from sdscratch.prepare.engine import Engine, map_shards
from sdscratch.prepare.pack.found import MAX_BYTES, require_folder

_NOTES = ".adoption"  # what was found in each tar, until all are done


@dataclass(frozen=True)
class Tars:
    """path: a folder of uncompressed tars with image samples: KEY.jpg, .png or .webp, KEY.json or KEY.txt."""

    path: Path | str

    def adopt(
        self,
        on_bad: str = "fail",
        engine: Engine = "local",
        workers: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Manifest:
        """Check every member of every tar, then write manifest and index beside them. An adopted folder is left alone.

        on_bad: samples that cannot be used, such as pictures that cannot be decoded, stop it ("fail"), or stay where
        they are and are named in bad.jsonl ("quarantine"). Raises DataError for what cannot be adopted, naming it,
        RunFolderError while another process adopts the folder.
        """
        check_choice("on_bad", on_bad, ("fail", "quarantine"))
        folder = Path(self.path)
        if (present := _present(folder)) is not None and not (folder / LOCK).exists():
            return present  # else somebody is at it, or was killed at its very end
        with FolderLock(folder, "end it").held():
            return _present(folder) or self._adopt(folder, on_bad, engine, workers, progress)

    def _adopt(
        self, folder: Path, on_bad: str, engine: Engine, workers: int, progress: Callable[[int, int], None]
    ) -> Manifest:
        names = _tars(folder)
        parts = dict[str, dict[str, Any]]()
        progress(0, len(names))
        for name, part in map_shards(partial(_examine, folder), names, engine, workers):
            parts[name] = part
            progress(len(parts), len(names))

        bad = [sample for name in names for sample in parts[name]["bad"]]
        if bad and on_bad == "fail":
            raise DataError(
                f"{len(bad)} of the samples in {folder} are bad, the first is {bad[0]['key']}: {bad[0]['reason']}. Mend "
                f"them, or set on_bad=quarantine to adopt the folder as it is and name them in {BAD}."
            )
        manifest = _manifest(folder, [parts[name] for name in names])
        if lines := "".join(json.dumps(sample) + "\n" for sample in bad):
            write_atomically(folder / BAD, lambda file: file.write(lines.encode()))
        manifest.write(folder)
        ShardIndex.open(folder)
        _tidy(folder)
        return manifest


def _present(folder: Path) -> Manifest | None:
    """What is adopted already."""
    _tars(folder)
    if (manifest := Manifest.read(folder)) is not None:
        ShardIndex.open(folder)  # raises where the two differ
        _tidy(folder)
    return manifest


def _tidy(folder: Path) -> None:
    """Remove the notes, and what a killed job had begun to write."""
    shutil.rmtree(folder / _NOTES, ignore_errors=True)
    remove_halves(folder)


def _tars(folder: Path) -> list[str]:
    """The names of the tars in a folder. Raises DataError unless there are some, and all of them can be adopted."""
    require_folder(folder, "tars of WebDataset's kind")
    if (folder / UNFINISHED).exists():
        raise DataError(f"{folder} was never finished. Run the command that writes it again.")
    names = sorted(path.name for path in folder.glob("*.tar"))
    compressed = sorted(
        path.name for path in (*folder.glob("*.tar.*"), *folder.glob("*.tgz")) if path.suffix != ".json"
    )
    # Not by rglob, which fails where a folder is removed meanwhile, as by another adoption that has just ended.
    below = (Path(place, name) for place, folders, files in walk(folder) for name in (*folders, *files))
    deeper = next((path for path in below if path.suffix == ".tar" and path.parent != folder), None)
    if compressed:
        raise DataError(f"{folder / compressed[0]} is compressed, and a shard is read in no sequence: unpack it first.")
    if deeper is not None:
        raise DataError(f"{deeper} lies below {folder}: adopt each folder of tars on its own, or move them into one.")
    if (odd := next((name for name in names if not (folder / name).is_file()), None)) is not None:
        raise DataError(
            f"{folder / odd} is no file, but a folder, a pipe, or a link that leads nowhere. Move it elsewhere."
        )
    if not names:
        raise DataError(f"no tars in {folder}: expected *.tar files of WebDataset's kind.")
    return names


def _examine(folder: Path, name: str) -> tuple[str, dict[str, Any]]:
    """What is in one tar; taken from its note where it was examined before and did not change since."""
    path, note = folder / name, folder / _NOTES / f"{name}.json"
    stat = path.stat()
    unchanged = {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    found = read_json(note)
    if found.get("of") == unchanged:
        return name, found["part"]
    part = _part(path)
    write_json(note, {"of": unchanged, "part": part})
    return name, part


def _part(path: Path) -> dict[str, Any]:
    keys, files, bad = set[str](), OpenFiles(), list[dict[str, str]]()
    sources, licences = Counter[str](), Counter[str]()
    for key, places in samples_of(path):
        if not KEY.fullmatch(key):  # which nobody could write again, as encoding does
            raise DataError(f"{path} holds the key {key!r}: expected {KEY_IN_WORDS}. Write it again with other names.")
        if key in keys:
            raise DataError(f"{path} holds the sample {key!r} twice, in places apart. Write the shard again.")
        keys.add(key)
        if any(suffix.endswith("npy") for suffix in places):
            raise DataError(
                f"{path} holds latents ({key}): nothing in a tar says which VAE made them. Adopt images, and encode them."
            )
        size = max(size for _, size in places.values())
        reason, record = f"a member of {size} bytes", dict[str, Any]()
        if size <= MAX_BYTES:
            members = {s: files.read(str(path), *place) for s, place in places.items()}
            reason, record = _what_is_wrong(members), record_of(members)
        if reason:
            bad.append({"shard": path.name, "key": key, "reason": reason})
        sources[str(record.get("source", "unknown"))] += 1
        licences[str(record.get("licence", "unknown"))] += 1
    shard = Shard(path.name, path.stat().st_size, sha256_of(path), len(keys))
    return {"shard": asdict(shard), "sources": sources, "licences": licences, "bad": bad}


def _what_is_wrong(members: Members) -> str:
    record = record_of(members)
    if "json" in members and not record:
        return "its json cannot be read"
    if not captions_of(members, record):
        return "it has no caption"
    try:
        open_image(image_member(members))
    except DataError as error:
        return str(error)
    return ""


def _manifest(folder: Path, parts: list[dict[str, Any]]) -> Manifest:
    sources, licences = (sum((Counter(part[field]) for part in parts), Counter()) for field in ("sources", "licences"))
    manifest = Manifest(
        "images", {"by": "adopt"}, tuple(Shard(**part["shard"]) for part in parts), dict(sources), dict(licences)
    )
    if not manifest.total:
        raise DataError(f"no samples in the tars of {folder}: expected members KEY.jpg, KEY.txt and the like.")
    return manifest

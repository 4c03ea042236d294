"""VGGFace2: faces of people, a folder for each, with boxes, genders, and for some of them attributes.

    PATH/train/n000002/0001_01.jpg
    PATH/meta/identity_meta.csv                        n000002, "A_Fine_Frenzy", 315, 1, f
    PATH/bb_landmark/loose_bb_train.csv                NAME_ID,X,Y,W,H
    PATH/attributes/09-Eyeglasses.txt                  n000002/0032_01.jpg<TAB>0

Captions are made from templates. Whose face it is, never goes into them: names are not even read.
"""

from __future__ import annotations

import csv
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sdscratch.data.shards import Dropped
from sdscratch.errors import DataError, check_choice, check_whole
from sdscratch.files import fingerprint_of
from sdscratch.prepare.crops import Box, check_margin
from sdscratch.prepare.pack.found import (
    Found,
    Slice,
    drawn,
    fingerprint_of_files,
    is_picture,
    read_file,
    require_file,
    require_folder,
    slices,
)

TEMPLATES = (
    "a photo of {}",
    "a portrait of {}",
    "a photo of the face of {}",
)
PEOPLE = {"m": "a man", "f": "a woman", None: "a person"}
ATTRIBUTES = {
    "Black_Hair": "with black hair",
    "Brown_Hair": "with brown hair",
    "Gray_Hair": "with gray hair",
    "Blond_Hair": "with blond hair",
    "Long_Hair": "with long hair",
    "Mustache_or_Beard": "with a beard or moustache",
    "Wearing_Hat": "wearing a hat",
    "Eyeglasses": "wearing glasses",
    "Sunglasses": "wearing sunglasses",
    "Mouth_Open": "with an open mouth",
}
"""What is said of a picture that has them, in this sequence. Gender is that of the person."""

_IDENTITY = re.compile(r'"?(n\d{6})"?\s*,.*,\s*"?([mf])"?\s*,?\s*')  # what is between is quoted in all sorts of ways
_LABELLED = re.compile(r"(n\d{6}/\w+\.jpg)\s+([01])\s*")


@dataclass(frozen=True)
class VGGFace2:
    """path: holds the folder `split`, and the files named above, of which attributes may be missing.

    crop: "face" cuts out the box and `margin` of its longer side around it; "none" keeps whole pictures. per_identity:
    pictures of each person, drawn by seed; None for all. limit: people, drawn by seed; None for all.
    """

    path: Path | str
    split: Literal["train", "test"] = "train"
    crop: Literal["face", "none"] = "face"
    margin: float = 0.3
    per_identity: int | None = None
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_identity is not None:
            check_whole("per_identity", self.per_identity)
        check_choice("crop", self.crop, ("face", "none"))
        check_margin(self.margin)

    @cached_property
    def root(self) -> Path:
        return require_folder(Path(self.path) / self.split, "a folder of pictures for each person")

    @cached_property
    def files(self) -> list[str]:
        """n000002/0001_01, ...: the chosen pictures, sorted."""
        people = [folder.name for folder in self.root.iterdir() if re.fullmatch(r"n\d{6}", folder.name)]
        chosen = list[str]()
        for person in drawn(people, self.limit, self.seed, "people"):
            names = [f"{person}/{file.name}" for file in (self.root / person).iterdir() if is_picture(file.name)]
            chosen += drawn(names, self.per_identity, self.seed, "faces")
        return chosen

    @cached_property
    def genders_file(self) -> Path:
        places = [Path(self.path) / name for name in ("meta/identity_meta.csv", "identity_meta.csv")]
        return require_file(next(filter(Path.is_file, places), places[0]), "the table of VGGFace2's people")

    @cached_property
    def boxes_file(self) -> Path:
        path = Path(self.path) / "bb_landmark" / f"loose_bb_{self.split}.csv"
        return require_file(path, "the boxes of VGGFace2's faces, or set crop=none")

    @cached_property
    def attribute_files(self) -> list[Path]:
        return sorted(filter(Path.is_file, (Path(self.path) / "attributes").glob("[0-9][0-9]-*.txt")))

    def identity(self) -> dict[str, Any]:
        tables = [self.genders_file, *([self.boxes_file] if self.crop == "face" else []), *self.attribute_files]
        names = ("split", "crop", "margin", "per_identity", "limit", "seed")
        return {
            "kind": "vggface2",
            "files": fingerprint_of_files(self.root, self.files),
            "tables": fingerprint_of(*tables),
            **{name: getattr(self, name) for name in names},
        }

    def parts(self, shard_size: int) -> Sequence[Slice]:
        genders, attributes = read_genders(self.genders_file), read_attributes(self.attribute_files)
        boxes = (
            read_boxes(self.boxes_file, {name.rpartition(".")[0] for name in self.files}) if self.crop == "face" else {}
        )
        items = [
            (
                name,
                boxes.get(name.rpartition(".")[0]),
                genders.get(name.partition("/")[0]),
                tuple(attributes.get(name, ())),
            )
            for name in self.files
        ]
        if not items:
            raise DataError(f"no pictures in {self.root}: expected n000001/0001_01.jpg and the like")
        return slices(items, shard_size, replace(self)._find)  # without the lists kept here: it travels

    def _find(self, items: Sequence[tuple[str, Box | None, str | None, tuple[str, ...]]]) -> Iterator[Found | Dropped]:
        for name, box, gender, attributes in items:
            path, (key, _, _) = self.root / name, name.rpartition(".")
            if box is None and self.crop == "face":
                yield Dropped(key, "no box", str(path))
                continue
            record = {
                "captions": captions(gender, attributes),
                "source": "vggface2",
                "licence": "VGGFace2: research only",
                "identity": name.partition("/")[0],
                "attributes": list(attributes),
            }
            yield Found(key, str(path), lambda path=path: read_file(path), record, box)  # type: ignore[misc]


def captions(gender: str | None, attributes: Sequence[str]) -> list[str]:
    """One for each template: "a portrait of a woman with long hair, wearing a hat"."""
    known = [phrase for name, phrase in ATTRIBUTES.items() if name in attributes]
    person = " ".join([PEOPLE[gender], ", ".join(known)]).strip()
    return [template.format(person) for template in TEMPLATES]


def read_genders(path: Path) -> dict[str, str]:
    """m or f of each person of identity_meta.csv, however the name between is quoted and whatever fields are missing."""
    found = dict[str, str]()
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if match := _IDENTITY.fullmatch(line.strip()):
            found[match[1]] = match[2]
        elif line.strip() and number > 1:
            raise DataError(
                f"{path}, line {number} is {line[:100]!r}: expected a person's number, name, ..., and m or f"
            )
    return found


def read_boxes(path: Path, wanted: set[str]) -> dict[str, Box]:
    """The boxes of these pictures, by their names without suffix."""
    with open(path, encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True)
        try:
            return {
                row["NAME_ID"]: Box(*(float(row[column]) for column in "XYWH"))
                for row in rows
                if row["NAME_ID"] in wanted
            }
        except (KeyError, ValueError, TypeError) as error:
            raise DataError(
                f"{path}, line {rows.line_num}: expected the columns NAME_ID, X, Y, W, H ({error!r})"
            ) from error


def read_attributes(paths: Sequence[Path]) -> dict[str, list[str]]:
    """What is said to be true of each picture, by its name."""
    found = defaultdict[str, list[str]](list)
    for path in paths:
        attribute = path.stem.partition("-")[2]
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if (match := _LABELLED.fullmatch(line)) is None:
                raise DataError(f"{path}, line {number} is {line[:100]!r}: expected a picture's name and 0 or 1")
            if match[2] == "1":
                found[match[1]].append(attribute)
    return dict(found)

"""COCO: pictures with five captions each, and boxes around the people in them.

PATH/train2017/000000000009.jpg
PATH/annotations/captions_train2017.json, instances_train2017.json, person_keypoints_train2017.json
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from sdscratch.data.shards import Dropped
from sdscratch.errors import ConfigError, DataError, check_choice
from sdscratch.files import fingerprint_of
from sdscratch.prepare.crops import Box, check_margin
from sdscratch.prepare.pack.found import (
    Found,
    Slice,
    drawn,
    fingerprint_of_files,
    known,
    read_file,
    require_file,
    require_folder,
    slices,
)


@dataclass(frozen=True)
class Coco:
    """path: holds the folder of pictures `split`, and the folder `annotations`.

    crop: "person" makes a sample of each person whose box has at least `min_height` of the picture's height, crowds
    excluded; "none" one of each picture. margin: around the box, as a share of its longer side. limit: samples, drawn
    by seed; None for all. The captions of the picture go with all its people.
    """

    path: Path | str
    split: str = "train2017"
    annotations: str = "annotations"
    crop: Literal["person", "none"] = "person"
    min_height: float = 0.55
    margin: float = 0.1
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("crop", self.crop, ("person", "none"))
        if not 0 <= self.min_height <= 1:
            raise ConfigError(f"min_height is {self.min_height}: expected a share of the picture's height, from 0 to 1")
        check_margin(self.margin)

    @cached_property
    def captions_file(self) -> Path:
        folder = require_folder(Path(self.path), "COCO's pictures and annotations")
        what = f"COCO's captions of {self.split}, or set split and annotations"
        return require_file(folder / self.annotations / f"captions_{self.split}.json", what)

    @cached_property
    def boxes_file(self) -> Path:
        """Of the people: instances, or keypoints where those are not there."""
        folder = Path(self.path) / self.annotations
        instances, keypoints = (folder / f"{name}_{self.split}.json" for name in ("instances", "person_keypoints"))
        return (
            instances if instances.is_file() else require_file(keypoints, f"it, or {instances.name}, for crop=person")
        )

    def identity(self) -> dict[str, Any]:
        files = [self.captions_file, *([self.boxes_file] if self.crop == "person" else [])]
        names = ("split", "crop", "min_height", "margin", "limit", "seed")
        pictures = require_folder(Path(self.path) / self.split, f"the pictures of {self.split}")
        return {
            "kind": "coco",
            "pictures": fingerprint_of_files(pictures, sorted(file.name for file in pictures.iterdir())),
            "annotations": fingerprint_of(*files),
            **{name: getattr(self, name) for name in names},
        }

    def parts(self, shard_size: int) -> Sequence[Slice]:
        try:
            items = self._items()
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"the annotations in {self.captions_file.parent} are not in COCO's format ({error!r})"
            ) from error
        if not items:
            raise DataError(
                f"{self.boxes_file} has no person of {self.min_height} of a picture's height in {self.split}"
            )
        return slices(items, shard_size, replace(self)._find)  # without the lists kept here: it travels

    def _items(self) -> list[tuple[str, str, Box | None, dict[str, Any]]]:
        captioned = _load(self.captions_file, "images", "annotations")
        captions = defaultdict[int, list[str]](list)
        for annotation in sorted(captioned["annotations"], key=lambda fields: fields["id"]):
            captions[annotation["image_id"]].append(annotation["caption"])
        licences = {licence["id"]: licence["name"] for licence in captioned.get("licenses", [])}
        pictures = {image["id"]: image for image in captioned["images"]}
        boxes = self._people(pictures) if self.crop == "person" else {f"{id:012d}": (id, None) for id in pictures}
        if odd := next((name for image in pictures.values() if (name := image["file_name"]) != Path(name).name), None):
            raise ValueError(f"file_name {odd!r} leads elsewhere")
        return [
            (key, pictures[id]["file_name"], box, _record(pictures[id], captions[id], licences))
            for key in drawn([*boxes], self.limit, self.seed, "limit")
            for id, box in [boxes[key]]
        ]

    def _find(self, items: Sequence[tuple[str, str, Box | None, dict[str, Any]]]) -> Iterator[Found | Dropped]:
        for key, name, box, record in items:
            path = Path(self.path) / self.split / name
            if not path.is_file():
                yield Dropped(key, "no picture", str(path))
                continue
            yield Found(key, f"{path} ({key})", lambda path=path: read_file(path), record, box)  # type: ignore[misc]

    def _people(self, pictures: Mapping[int, Any]) -> dict[str, tuple[int, Box | None]]:
        """By key, the picture and the box of every person who is large enough."""
        fields = _load(self.boxes_file, "annotations", "categories")
        person = {category["id"] for category in fields["categories"] if category["name"] == "person"}
        return {
            f"{found['image_id']:012d}-{found['id']}": (found["image_id"], Box(*map(float, found["bbox"])))
            for found in fields["annotations"]
            if found["category_id"] in person
            and not found.get("iscrowd")
            and found["image_id"] in pictures
            and found["bbox"][3] >= self.min_height * pictures[found["image_id"]]["height"]
        }


def _record(image: Mapping[str, Any], captions: list[str], licences: Mapping[int, str]) -> dict[str, Any]:
    licence = licences.get(image.get("license", 0), "unknown")
    fields = {"coco_id": image["id"], "url": image.get("coco_url"), "flickr_url": image.get("flickr_url")}
    return {"captions": captions, "source": "coco", "licence": licence, **known(fields)}


def _load(path: Path, *sections: str) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    missing = [name for name in sections if not isinstance(fields, dict) or not isinstance(fields.get(name), list)]
    if missing:
        raise DataError(f"{path} has no {', '.join(missing)}: expected annotations in COCO's format")
    return fields

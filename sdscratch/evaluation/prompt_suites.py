"""Lists of prompts from local files, with the category that each belongs to."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable
from itertools import chain, repeat
from pathlib import Path
from typing import Any, NamedTuple

from sdscratch.data import shapes as drawn_scenes
from sdscratch.data.shapes import Scene, Split
from sdscratch.errors import ConfigError, DataError, check_whole
from sdscratch.evaluation.real_pictures import RealPictures

DRAWBENCH_ORDER = {  # DrawBench's lines as they come in the paper; the plain list names no categories
    "colours": 25,
    "conflicting": 10,
    "counting": 19,
    "DALL-E": 20,
    "descriptions": 20,
    "Gary Marcus": 10,
    "misspellings": 10,
    "positional": 20,
    "rare words": 7,
    "Reddit": 38,
    "text": 21,
}


class Prompt(NamedTuple):
    """scene: what a judge should find in the picture, where the suite knows it."""

    text: str
    category: str = ""
    scene: Scene | None = None


def captions(path: str | None, count: int) -> list[Prompt]:
    """The captions of the real pictures of a folder of image shards: what FID and its kin need."""
    if path is None:
        raise ConfigError(
            "suite=captions asks with the captions of real pictures, but there are none: set path=FOLDER, of image shards, or "
            "another suite, such as suite=shapes"
        )
    check_whole("suite.count", count)
    return [Prompt(text) for text in RealPictures(path, count).captions]


def shapes(split: Split, count: int, seed: int) -> list[Prompt]:
    """Prompts for scenes of the embedded data set, which the judge can read back; a category per split."""
    check_whole("suite.count", count)
    return [Prompt(text, split, scene) for text, scene in drawn_scenes.prompts(split, count, seed)]


def lines(path: str, count: int | None = None) -> list[Prompt]:
    """A plain text file with a prompt in each line."""
    return _checked(path, map(Prompt, _lines(path)), count)


def parti_prompts(path: str, by: str = "Category", count: int | None = None) -> list[Prompt]:
    """PartiPrompts.tsv (Yu et al. 2022): columns Prompt, Category, Challenge, Note. by: the column that makes categories."""
    rows = _rows(path, delimiter="\t", quoting=csv.QUOTE_NONE)
    if by not in ("Category", "Challenge"):
        raise ConfigError(f"suite.by is {by!r}: expected Category or Challenge")
    if not rows or not rows[0].keys() >= {"Prompt", by}:
        raise DataError(
            f"{path} is no PartiPrompts file: expected tab-separated columns Prompt, Category, Challenge, Note"
        )
    return _checked(path, (Prompt(row["Prompt"] or "", row[by] or "") for row in rows), count)


def drawbench(path: str, count: int | None = None) -> list[Prompt]:
    """DrawBench (Saharia et al. 2022): its CSV with columns Prompts, Category, or its 200 prompts, one in each line.

    In the plain list categories follow from the order, which is the paper's.
    """
    if Path(path).suffix == ".csv":
        rows = _rows(path)
        if not rows or not rows[0].keys() >= {"Prompts", "Category"}:
            raise DataError(f"{path} is no DrawBench file: expected columns Prompts, Category")
        return _checked(path, (Prompt(row["Prompts"] or "", row["Category"] or "") for row in rows), count)
    found = _lines(path)
    if len(found) != sum(DRAWBENCH_ORDER.values()):
        raise DataError(f"{path} holds {len(found)} prompts, DrawBench has 200. For any other list, set suite=lines")
    names = chain.from_iterable(repeat(name, times) for name, times in DRAWBENCH_ORDER.items())
    return _checked(path, map(Prompt, found, names), count)


def geneval(path: str, count: int | None = None) -> list[Prompt]:
    """GenEval (Ghosh et al. 2023): evaluation_metadata.jsonl, categories by its tags. Its detector is no part of this."""
    rows = [_object(path, number, line) for number, line in enumerate(_lines(path), 1)]
    return _checked(path, (Prompt(str(row.get("prompt", "")), str(row.get("tag", ""))) for row in rows), count)


def t2i_compbench(path: str, count: int | None = None) -> list[Prompt]:
    """T2I-CompBench (Huang et al. 2023): a folder of *_val.txt, a category per file, or one such file."""
    if not Path(path).is_dir():
        return lines(path, count)
    if not (files := sorted(Path(path).glob("*_val.txt"))):
        raise DataError(f"{path} holds no *_val.txt: expected T2I-CompBench's folder examples/dataset")
    found = [Prompt(text, file.stem.removesuffix("_val")) for file in files for text in _lines(str(file))]
    return _checked(path, found, count)


def _lines(path: str) -> list[str]:
    """Those that are not empty. Raises DataError for what is no text file."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(f"suite.path={path} cannot be read ({reason}): expected a file of prompts") from error
    return [line.strip(" ") for line in text.splitlines() if line.strip()]


def _rows(path: str, **dialect: Any) -> list[dict[str, str]]:
    """Of a table whose first line names its columns. Raises DataError for what is none."""
    try:
        return list(csv.DictReader(_lines(path), **dialect))
    except csv.Error as error:
        raise DataError(f"{path} is no table of prompts: {error}") from error


def _object(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise DataError(f"{path}, line {number}: expected a JSON object with prompt and tag, as GenEval has")
    return found


def _checked(path: str, prompts: Iterable[Prompt], count: int | None) -> list[Prompt]:
    """`count` of them evenly spread, so that every category keeps its share; None: all. Raises ConfigError, DataError."""
    if count is not None:
        check_whole("suite.count", count)
    found = list(prompts)
    if empty := [number for number, prompt in enumerate(found, 1) if not prompt.text.strip()]:
        raise DataError(f"{path}: prompt {empty[0]} is empty")
    if not found:
        raise DataError(f"{path} holds no prompts")
    if count is None or count >= len(found):
        return found
    return [found[i * len(found) // count] for i in range(count)]

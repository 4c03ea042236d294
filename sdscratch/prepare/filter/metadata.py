"""Metadata as collections publish it: how its files are opened, and one name and one type for every known column."""

from __future__ import annotations

import glob
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

import duckdb

from sdscratch.errors import DataError
from sdscratch.files import walk
from sdscratch.prepare.sql import identifier, quoted

ALIASES = {
    "url": ("url", "image_url", "img_url"),
    "caption": ("caption", "text", "prompt", "top_caption"),
    "width": ("width", "original_width"),
    "height": ("height", "original_height"),
    "similarity": ("similarity", "clip_sim", "clip_similarity_vitb32", "clip_b32_similarity_score"),
    "punsafe": ("punsafe", "nsfw", "is_nsfw", "nsfw_score_opennsfw2", "image_nsfw"),
    "pwatermark": ("pwatermark", "watermark", "watermark_score"),
    "aesthetic": ("aesthetic", "aesthetic_score", "aesthetic_score_laion_v2", "aesthetics_score"),
    "language": ("language", "lang"),
    "source": ("source",),
    "licence": ("licence", "license"),
}
"""The columns that rules and later steps know, each with the names it goes by: the first that a file has, in any case."""

IDENTITY = "__identity"
"""What a row is called after: its http or https address; where a collection has none, the first of IDENTITIES."""

IDENTITIES = ("image_name", "img_path", "image_path", "file_name", "filename", "uid", "id", "key")
NUMBERS = {"width": "INTEGER", "height": "INTEGER"} | dict.fromkeys(
    ("similarity", "punsafe", "pwatermark", "aesthetic"), "DOUBLE"
)
UNSAFE = {"unlikely": 0.0, "unsure": 0.5, "nsfw": 1.0, "false": 0.0, "true": 1.0}
"""LAION's words for how probably a picture is unsafe, and a yes or no."""

SPACES = r"\x00-\x1f\x7f-\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}\x{feff}"
"""White space and control characters, but for the space itself, as part of a character class."""

READERS = {
    ".parquet": "read_parquet({path})",
    ".csv": "read_csv({path}, header = true, all_varchar = true)",
    ".tsv": "read_csv({path}, header = true, all_varchar = true, delim = '\t')",
    ".jsonl": "read_json({path}, format = 'newline_delimited')",
}
PACKED = (".gz", ".zst")
"""What may follow the ending of all but parquet files."""

Columns = dict[str, str]  # of a file: its names, as they are written there, and their types


def metadata_files(path: Path, but_not_in: Path) -> list[Path]:
    """The metadata file, or all of them in a folder and below it, in no particular sequence. Raises DataError for none,
    and for a folder that cannot be read.

    but_not_in: where what is made of them goes.
    """
    if path.is_file():
        reader(path)
        return [path]
    found = list[Path]()
    for place, folders, names in walk(path):
        folders[:] = [name for name in folders if not _is_hidden(name)]
        shown = (Path(place, name) for name in names if not _is_hidden(name))
        found += [file for file in shown if _ending(file) and file.is_file()]
    found = [file for file in found if not file.resolve().is_relative_to(but_not_in.resolve())]
    if not found:
        what = "holds none" if path.is_dir() else "does not exist"
        raise DataError(f"{path} {what}: expected metadata, a file or a folder of {', '.join(READERS)}")
    return found


def fingerprint(path: Path) -> str:
    """What a file holds, told from its size, its beginning and its end: parquet keeps its checksums and statistics there."""
    size, ends = path.stat().st_size, 1 << 20
    with path.open("rb") as file:
        digest = sha256(f"{size}:".encode() + file.read(ends))
        file.seek(max(0, size - ends))
        digest.update(file.read())
    return digest.hexdigest()


def columns_of(connection: duckdb.DuckDBPyConnection, path: Path) -> Columns:
    """The columns of a file. Raises duckdb.Error for one that cannot be read."""
    return {name: kind for name, kind, *_ in connection.execute(f"DESCRIBE FROM {reader(path)}").fetchall()}


def reader(path: Path) -> str:
    """The table function that reads a file, as SQL. Raises DataError for an ending that none reads."""
    if not (ending := _ending(path)):
        raise DataError(f"{path} is no metadata: expected a file or a folder of {', '.join(READERS)}")
    return READERS[ending].format(path=quoted(glob.escape(str(path))))


def normalised(columns: Columns) -> Mapping[str, str]:
    """What makes a file's columns those that the rest of the pipeline knows: the new name -> SQL over the old ones.

    The known ones come first, then IDENTITY, then all others, by name.
    """
    there = {name.lower(): name for name in reversed(columns)}
    taken = {known: there[name] for known in ALIASES if (name := _first(ALIASES[known], there))}
    known = {name: _typed(name, column, columns[column]) for name, column in taken.items()}
    if "url" in known:
        known[IDENTITY] = f"CASE WHEN regexp_matches({known['url']}, '(?i)^https?://.') THEN {known['url']} END"
    elif name := _first(IDENTITIES, there):
        known[IDENTITY] = _text(there[name], columns[there[name]])
    used = {*taken.values(), there.get("key")}  # a foreign key would be taken for one of ours
    return known | {name: identifier(name) for name in sorted(columns.keys() - used) if name.lower() not in known}


def _is_hidden(name: str) -> bool:
    return name.startswith((".", "_"))


def _ending(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if len(suffixes) > 1 and suffixes[-1] in PACKED and suffixes[-2] != ".parquet":
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in READERS else ""


def _first(names: tuple[str, ...], there: Mapping[str, str]) -> str | None:
    return next((name for name in names if name in there), None)


def _typed(name: str, column: str, kind: str) -> str:
    if name == "punsafe":
        return _unsafe(column)
    if name in NUMBERS:
        return f"TRY_CAST({_number(identifier(column))} AS {NUMBERS[name]})"
    return _one_line(_text(column, kind)) if name == "caption" else f"trim({_text(column, kind)})"


def _text(column: str, kind: str) -> str:
    return f"TRY(decode({identifier(column)}))" if kind == "BLOB" else f"{identifier(column)}::VARCHAR"


def _number(column: str) -> str:
    """NaN, which is above every number in SQL, and infinities are unknown."""
    number = f"TRY_CAST({column} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _unsafe(column: str) -> str:
    """LAION's words, or a probability, or a yes or no."""
    word = f"lower(trim({identifier(column)}::VARCHAR))"
    number = _number(identifier(column))
    words = " ".join(f"WHEN '{name}' THEN {value}" for name, value in UNSAFE.items())
    return f"CASE {word} {words} ELSE {number} END"


def _one_line(text: str) -> str:
    """Single spaces, no control characters. Few captions need it, and the replacement is slow."""
    needed = rf"[{SPACES}]|  |^ | $"
    return f"""CASE WHEN regexp_matches({text}, '{needed}') THEN trim(regexp_replace({text}, '[ {SPACES}]+', ' ', 'g'))
        ELSE {text} END"""

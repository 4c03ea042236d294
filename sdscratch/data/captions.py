"""Captions out of whatever bytes a shard holds. Nothing here fails: what cannot be read is no caption."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_CHARACTERS = 4000  # far beyond the 77 tokens that count, and short enough for every tokenizer

_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")  # those that are not white space, NUL first of all
_SURROGATES = re.compile("[\ud800-\udfff]")  # half characters, which no UTF-8 writer takes


def record_of(members: Mapping[str, bytes]) -> dict[str, Any]:
    """The fields of a sample's KEY.json (captions, source, licence, width, height, ...); {} when there is none."""
    try:
        record = json.loads(_decode(members["json"]))
    except (KeyError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}


def captions_of(members: Mapping[str, bytes], record: Mapping[str, Any]) -> list[str]:
    """All captions of a sample, cleaned: `captions` of its record, else its KEY.txt; [] when neither holds any text."""
    found = record.get("captions")
    found = [found] if isinstance(found, str) else found if isinstance(found, list) else []
    captions = [text for item in found if isinstance(item, str) and (text := clean(item))]
    if not captions and "txt" in members and (text := clean(_decode(members["txt"]))):
        captions = [text]
    return captions


def choose(captions: Sequence[str], u: float) -> int:
    """The number of one of the captions, by a draw u in [0, 1)."""
    return int(u * len(captions))


def clean(text: str) -> str:
    """One line, single spaces, no control characters, valid Unicode, at most MAX_CHARACTERS long."""
    text = _SURROGATES.sub("\ufffd", _CONTROLS.sub("", text))
    return " ".join(text.replace("\ufeff", " ").split())[:MAX_CHARACTERS].rstrip()


def _decode(data: bytes) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # every byte is a character there

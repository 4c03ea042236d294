"""What a row must be to be kept, as one reads it in conf/rules, and as SQL."""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

from sdscratch.errors import ConfigError, check_whole
from sdscratch.prepare.filter.metadata import IDENTITY
from sdscratch.prepare.sql import quoted

LETTER = r"\p{L}\p{N}\p{M}"  # what a word is made of, in every script; an underscore is none
FOLDED = "lower(nfc_normalize(caption))"
"""Captions that differ in nothing else are the same caption."""


ADDRESS = "address"
"""The rule that is always on: without an http(s) address, or what stands for it, a row cannot be called anything."""

COMPARED = (
    ("min_aesthetic", ("aesthetic",), "aesthetic >= {}"),
    ("min_similarity", ("similarity",), "similarity >= {}"),
    ("min_side", ("width", "height"), "width >= {0} AND height >= {0}"),
    ("min_aspect", ("width", "height"), "width >= {} * height AND height > 0"),
    ("max_aspect", ("width", "height"), "width <= {} * height"),
    ("watermark_below", ("pwatermark",), "pwatermark < {}"),
    ("unsafe_below", ("punsafe",), "punsafe < {}"),
    ("min_characters", ("caption",), "length(caption) >= {}"),
    ("max_characters", ("caption",), "length(caption) <= {}"),
    ("min_words", ("caption",), "len(string_split(caption, ' ')) >= {}"),
)
"""Rules that compare columns with a number, which stands for {}."""


class Rule(NamedTuple):
    """Its name in the funnel, the columns that it looks at, and what it keeps, as SQL over them; unknown is not kept."""

    name: str
    columns: tuple[str, ...]
    keeps: str


@dataclass(frozen=True)
class Rules:
    """Every rule there is, in the sequence in which they are applied: a row falls to the first that it fails. null: off.

    min_side: pixels, of width and of height. min_aspect, max_aspect: width / height. languages: codes as the collection
    writes them. words: lists by name, each a rule of its own: a caption falls that holds one of these words or phrases,
    whole, in any case. unique_url, unique_caption: of rows with the same address (or, where a collection has none, the
    same name), and of captions that differ at most in case, white space and Unicode form, one stays, wherever they come
    from. max_rows: a sample, drawn by `seed`; of two samples with one seed the larger holds the smaller.
    """

    min_aesthetic: float | None = None
    min_similarity: float | None = None
    min_side: int | None = None
    min_aspect: float | None = None
    max_aspect: float | None = None
    watermark_below: float | None = None
    unsafe_below: float | None = None
    min_characters: int | None = None
    max_characters: int | None = None
    min_words: int | None = None
    languages: list[str] | None = None
    words: Mapping[str, list[str]] | None = None
    unique_url: bool = True
    unique_caption: bool = True
    max_rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("min_side", "min_characters", "max_characters", "min_words", "max_rows"):
            if getattr(self, name) is not None:
                check_whole(f"rules.{name}", getattr(self, name))
        for name in ("min_aesthetic", "min_similarity", "min_aspect", "max_aspect", "watermark_below", "unsafe_below"):
            if (value := getattr(self, name)) is not None and not math.isfinite(value):
                raise ConfigError(f"rules.{name} is {value}: expected a finite number, or null to switch the rule off")
        for low, high in (("min_aspect", "max_aspect"), ("min_characters", "max_characters")):
            if None not in (least := getattr(self, low), most := getattr(self, high)) and least > most:
                raise ConfigError(f"rules.{low}={least} is above rules.{high}={most}: no row can fit both")
        if clash := (self.words or {}).keys() & {rule.name for rule in fields(self)}:
            raise ConfigError(f"rules.words.{min(clash)}: a rule has that name already; choose another one")
        for name, words in (self.words or {}).items():
            if not words or not all(isinstance(word, str) and _parts(word) for word in words):
                raise ConfigError(f"rules.words.{name} is {words}: expected words or phrases, at least one")

    def of_rows(self) -> Iterator[Rule]:
        """Those that look at one row by itself."""
        yield Rule(ADDRESS, (IDENTITY,), f"{IDENTITY} <> ''")
        for name, columns, keeps in COMPARED:
            if (value := getattr(self, name)) is not None:
                yield Rule(name, columns, keeps.format(f"{value!r}::DOUBLE" if isinstance(value, float) else value))
        if self.languages is not None:
            known = ", ".join(quoted(language.lower()) for language in self.languages)
            yield Rule("languages", ("language",), f"lower(language) IN ({known})")
        for name, words in (self.words or {}).items():
            yield Rule(name, ("caption",), f"NOT regexp_matches({FOLDED}, '{_holds_one_of(words)}')")

    def settings(self) -> dict[str, Any]:
        """What is switched on, as plain JSON."""
        return {name: value for name, value in asdict(self).items() if value not in (None, False)}


def _holds_one_of(words: list[str]) -> str:
    """A regular expression, ready for SQL. RE2's own word boundary knows no letters but those of English."""
    phrases = [_parts(unicodedata.normalize("NFC", word).lower()) for word in words]
    either = "|".join("[ [:punct:]]+".join(map(re.escape, parts)) for parts in phrases)
    return f"(?:^|[^{LETTER}])(?:{either})(?:$|[^{LETTER}])"


def _parts(phrase: str) -> list[str]:
    return [part for part in re.split(rf"[\s{re.escape(string.punctuation)}]+", phrase) if part]

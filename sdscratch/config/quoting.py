"""Free text of the command line, in the quotes that Hydra's grammar needs around it."""

from __future__ import annotations

import csv
import io
import re

from sdscratch.config.composition import config_groups, literal

FREE_TEXT = (
    "prompt",
    "negative_prompt",
    "path",
    "out",
    "model",
    "init_image",
    "batch",
    "where",
    "configs",
    "vae",
    "text_encoder",
)
"""Keys whose value is taken as it stands, whatever Hydra's grammar would make of it."""

LISTS = ("prompt", "negative_prompt")
"""Those of them that may be several texts in brackets."""


def quoted(verb_config: str, overrides: list[str]) -> list[str]:
    """Overrides with free text in Hydra's quotes. A config group of that name (train's `model`) is no free text.

    prompt=[a red circle, "a sunset, 4k"] is a list, of texts with commas in double quotes.
    """
    if verb_config == "curriculum":
        overrides = [_quoted_words(word) for word in overrides]
    matches = [re.fullmatch(rf"(\+{{0,2}}({'|'.join(FREE_TEXT)}))=(.*)", word, re.DOTALL) for word in overrides]
    if not any(matches):
        return overrides
    groups = config_groups(verb_config)
    return [
        f"{match[1]}={_quotes(match[2], match[3])}" if match and match[2] not in groups else word
        for word, match in zip(overrides, matches, strict=True)
    ]


def _quotes(key: str, value: str) -> str:
    if key not in LISTS or not re.fullmatch(r"\[.*\]", value, re.DOTALL):
        return literal(value)
    rows = csv.reader(io.StringIO(value[1:-1]), skipinitialspace=True)
    return f"[{','.join(literal(text.strip()) for row in rows for text in row)}]"


def _quoted_words(word: str) -> str:
    """train=[a=b,c=[1,2]] with Hydra's quotes around the words in it, so that they need none on the command line.

    overrides.PHASE=[...] gets the ++ by which Hydra takes a key that is not there yet.
    """
    if word.startswith("overrides="):
        return f"++{word}"
    match = re.fullmatch(r"(?:\+{0,2})(train|overrides\.[\w.-]+)=\[(.*)\]", word, re.DOTALL)
    if not match:
        return word
    words = [text if text[0] in "\"'" else literal(text) for text in map(str.strip, _at_commas(match[2])) if text]
    return f"{'' if match[1] == 'train' else '++'}{match[1]}=[{','.join(words)}]"


def _at_commas(text: str) -> list[str]:
    """Text cut at the commas that stand in no brackets and no quotes."""
    parts, depth, quote = [""], 0, ""
    for sign in text:
        if sign == "," and not depth and not quote:
            parts.append("")
            continue
        parts[-1] += sign
        if quote:
            quote = "" if sign == quote else quote
        elif sign in "\"'":
            quote = sign
        else:
            depth += (sign in "[({") - (sign in "])}")
    return parts

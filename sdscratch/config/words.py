"""The wording of complaints."""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'optimizer.lr'?`, or nothing where no known word comes near.

    Among dotted keys, one that ends in the same or nearly the same name is near too: `lr` suggests `optimizer.lr`.
    """
    known = sorted(known)
    last_names: dict[str, str] = {}
    for key in sorted(known, key=lambda key: key.count(".")):
        last_names.setdefault(key.rpartition(".")[2], key)
    near = get_close_matches(word, known, n=1, cutoff=0.8)
    near_last = get_close_matches(word.rpartition(".")[2], last_names, n=1, cutoff=0.7)
    near = near or [last_names[name] for name in near_last]
    return f"; did you mean {near[0]!r}?" if near else ""


def screen(headline: str, problems: Iterable[str], most: int = 30) -> str:
    """A headline, then a line for each distinct problem, cut to one screen."""
    lines = list(dict.fromkeys(problems))
    more = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return shortened("\n  ".join([headline, *lines[:most], *more]))


def shortened(text: str, most: int = 300) -> str:
    """Text whose lines are cut at `most` characters: a complaint may quote a value of any length."""
    return "\n".join(line if len(line) <= most else line[:most] + "..." for line in text.split("\n"))


def first_line(error: BaseException) -> str:
    """What an exception says, without the context that libraries append."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def join(key: str, name: Any) -> str:
    """The dotted key of an entry below `key`."""
    return f"{key}.{name}" if key else str(name)


def escape_interpolations(text: str) -> str:
    """Text that OmegaConf reads back as it stands, `${` included."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)

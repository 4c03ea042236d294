"""`X-Robots-Tag`: what the owners of pictures say about their use."""

from __future__ import annotations

from collections.abc import Iterable

OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})  # `none` is noindex and nofollow
_WITH_VALUE = frozenset({"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"})


def opted_out(headers: Iterable[str], bot: str) -> str | None:
    """The directive by which `bot` may not use an answer with these X-Robots-Tag headers; None when it may.

    A header is a list of directives, of which those after `NAME:` are for the robot of that name only.
    """
    for header in headers:
        addressee = ""
        for part in header.lower().split(","):
            name, colon, rest = part.partition(":")
            if colon and name.strip() not in _WITH_VALUE:
                addressee, part = name.strip(), rest
            if addressee in ("", "*", bot.lower()) and part.strip() in OPT_OUTS:
                return part.strip()
    return None

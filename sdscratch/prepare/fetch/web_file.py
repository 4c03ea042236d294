"""One file over http(s), however often its server goes away: each attempt goes on where the one before ended."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import httpx

from sdscratch.errors import CannotWriteError, DataError
from sdscratch.files import crash_point, read_json, write_json

ATTEMPTS = 6  # in a row that bring nothing
PAUSE = 0.5  # seconds after the first of them, doubled after each
TIMEOUT = httpx.Timeout(30.0)

Bytes = Callable[[int], None]  # called with how many of a file are there


class _Again(Exception):
    """Worth another attempt."""


def size_of(url: str) -> int | None:
    """What its server says of a file's size, in bytes. Raises DataError where it does not give it at all."""
    try:
        answer = httpx.head(url, follow_redirects=True, timeout=TIMEOUT, headers={"Accept-Encoding": "identity"})
        if answer.status_code not in (403, 405, 501):  # some only answer to GET
            answer.raise_for_status()
    except httpx.HTTPError as error:
        raise DataError(f"{url} cannot be fetched: {_said(error)}") from error
    length = answer.headers.get("content-length", "")
    return int(length) if answer.is_success and length.isdecimal() else None


def fetch_file(url: str, target: Path, progress: Bytes = lambda count: None) -> None:
    """Bring a file to `target`, which appears when it is whole. What an attempt brought stays in .NAME.part beside it.

    Raises DataError after ATTEMPTS in vain, and at once for answers such as 404; CannotWriteError for a full disk.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    half = target.with_name(f".{target.name}.part")
    in_vain, pause = 0, PAUSE
    while True:
        before = half.stat().st_size if half.exists() else 0
        try:
            _attempt(url, half, progress)
            break
        except (httpx.TransportError, _Again) as error:
            brought = half.stat().st_size > before if half.exists() else False
            in_vain, pause = (1, PAUSE) if brought else (in_vain + 1, 2 * pause)
            if in_vain >= ATTEMPTS:
                raise DataError(f"{url} cannot be fetched: {_said(error)}. The same command goes on") from error
            time.sleep(pause)
        except httpx.HTTPError as error:
            raise DataError(f"{url} cannot be fetched: {_said(error)}") from error
        except OSError as error:
            raise CannotWriteError(f"cannot write {half}: {error.strerror or error}. Free some space") from error
    os.replace(half, target)
    _validator_file(half).unlink(missing_ok=True)


def _attempt(url: str, half: Path, progress: Bytes) -> None:
    there = half.stat().st_size if half.exists() else 0
    validator = read_json(_validator_file(half)).get(url)
    headers = {"Accept-Encoding": "identity"}  # the file, not a packed form of it
    if there and validator:
        headers |= {"Range": f"bytes={there}-", "If-Range": validator}
    with httpx.stream("GET", url, headers=headers, follow_redirects=True, timeout=TIMEOUT) as answer:
        if answer.status_code in (408, 429) or answer.status_code >= 500:
            raise _Again(f"its server answers {answer.status_code} {answer.reason_phrase}")
        if answer.status_code == 416:  # as long as the file already, or longer: nothing of it can be trusted
            half.unlink(missing_ok=True)
            raise _Again("its server has no more bytes than came before")
        answer.raise_for_status()
        goes_on = answer.status_code == 206 and answer.headers.get("content-range", "").startswith(f"bytes {there}-")
        if answer.status_code == 206 and not goes_on:
            half.unlink(missing_ok=True)
            raise _Again("its server sends another part than was asked for")
        with half.open("ab" if goes_on else "wb") as file:
            if not goes_on:  # only now, when no byte of another version is left
                write_json(_validator_file(half), {url: _validator(answer)})
            for chunk in answer.iter_raw():
                file.write(chunk)
                progress(file.tell())
                crash_point("fetch:chunk")
            file.flush()
            os.fsync(file.fileno())


def _validator(answer: httpx.Response) -> str:
    """What tells this version of the file from others; a weak tag does not."""
    tag = answer.headers.get("etag", "")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("last-modified", "")


def _validator_file(half: Path) -> Path:
    return half.with_name(f"{half.name}.json")


def _said(error: Exception) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"its server answers {error.response.status_code} {error.response.reason_phrase}"
    return " ".join(str(error).split()) or type(error).__name__

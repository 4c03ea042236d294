"""What a run says while it trains. Whoever reads it may be gone, by the same Ctrl-C: that must not cost it a checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import ProgressColumn


def say(text: str) -> None:
    """A line on stdout, if anyone listens."""
    with suppress(OSError, ValueError):
        print(text, flush=True)


def warn(text: str) -> None:
    """A line on stderr that begins with `warning:`, if anyone listens."""
    with suppress(OSError, ValueError):
        print(f"warning: {text}", file=sys.stderr, flush=True)


def say_at_once(text: bytes) -> None:
    """On stderr, from within a signal handler, where nothing buffered may be touched."""
    with suppress(OSError):
        os.write(2, text)


@contextmanager
def progress_bar(what: str, *columns: ProgressColumn) -> Iterator[Callable[..., None]]:
    """A bar on stderr where that is a terminal. columns: in place of rich's usual ones.

    Gives what moves it: called with how much is done, of how much, and what it is called from now on, where that changes.
    """
    from rich.console import Console
    from rich.progress import Progress

    with Progress(*columns, console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)

        def move(done: int, total: int, what: str = what) -> None:
            bar.update(task, completed=done, total=total, description=what)

        yield move


def forget_lost_readers() -> None:
    """Send what is left to say nowhere where its reader is gone: else Python's own flush at exit changes the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

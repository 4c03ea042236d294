"""What a run says while it trains. Whoever reads it may be gone, by the same Ctrl-C: that must not cost it a checkpoint."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


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
def progress_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal. Gives what moves it: called with how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def forget_lost_readers() -> None:
    """Send what is left to say nowhere where its reader is gone: else Python's own flush at exit changes the exit code."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""Stopping by signal: at the next step boundary while training, at once before and after, without asking on the second."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import lightning as L

from sdscratch.console import say_at_once
from sdscratch.errors import StoppedError

PASSED_ON = signal.SIGUSR1
"""By which the process that launched ranks passes a signal on, and SLURM may announce a preemption. Never a second one."""

ANNOUNCEMENT = b"stopping at the next step boundary; once more stops at once\n"


def stopped(run: object, number: int, step: int | None = None) -> StoppedError:
    """What to raise when signal `number` has stopped a run, after `step` steps if any were taken."""
    when = "" if step is None else f" after step {step}"
    return StoppedError(
        f"{run} was stopped by {signal.Signals(number).name}{when}", f"`sdscratch resume {run}`", number
    )


class StopNow(BaseException):
    """Raised by a signal; no Exception, which libraries may take for a failure of what they were doing just then."""


class StopSignals:
    """In `with StopSignals(run):`, SIGTERM and SIGINT ask the run to stop.

    While `at_boundaries`, the first one only sets `number`, which the ranks agree on at each step boundary; else there is
    nothing to lose, and the block ends there and then, with StoppedError. A second one ends the process: files are whole
    or not there.

    run: how to name the run to the user. announce: tell whoever sent the signal what it will do.
    """

    def __init__(self, run: str, announce: bool = True) -> None:
        self.run, self.announce = run, announce
        self.number, self.at_boundaries = 0, False
        self._asked_directly = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # only there Python lets signals be handled
            for number in (signal.SIGTERM, signal.SIGINT, PASSED_ON):
                self._before[number] = signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if isinstance(error, StopNow):
            raise stopped(self.run, self.number) from None

    @contextmanager
    def ending_at_once(self) -> Iterator[None]:
        """In here SIGTERM and SIGINT end the process by themselves: while torch waits for others, Python handles no signal."""
        asked = [number for number in self._before if number != PASSED_ON]
        for number in asked:
            signal.signal(number, signal.SIG_DFL)
        try:
            yield
        finally:
            for number in asked:
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        if number == PASSED_ON:
            number = signal.SIGTERM
        elif self._asked_directly:
            os._exit(128 + number)
        else:
            self._asked_directly = True
        self.number = self.number or number
        if not self.at_boundaries:
            raise StopNow
        if self.announce:
            say_at_once(ANNOUNCEMENT)


def without_lightnings_signals(trainer: L.Trainer) -> None:
    """Keep Lightning from handling signals itself.

    Lightning 2.6.6 would replace our handlers, hang when one rank alone is stopped, and broadcast a flag, waiting for the
    device, at every micro-batch. There is no public way to say so.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None

"""What a check has found, and how to run one that may hang."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from threading import Thread
from typing import Literal

from sdscratch.errors import SdscratchError

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """fail: such a run would not work. warn: it would, but not as one might think. remedy: what to do about it."""

    level: Level
    about: str
    found: str
    remedy: str = ""


class Check:
    """A check at work in a thread of its own, from now on.

    check: gives findings; what it raises becomes one. seconds: how long `findings` waits for it, counted from the call.
    A check that never ends is left behind: the thread does not keep the program from ending.
    """

    def __init__(self, about: str, check: Callable[[], Iterable[Finding]], seconds: float) -> None:
        self.about, self.seconds = about, seconds
        self._check = check
        self._findings: list[Finding] = []
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def findings(self) -> list[Finding]:
        """What was found; one failure where no answer came in time."""
        self._thread.join(self.seconds)
        if self._thread.is_alive():
            return [Finding("fail", self.about, f"no answer within {self.seconds:.0f} s", "look at what it waits for")]
        return self._findings

    def _run(self) -> None:
        try:
            self._findings = list(self._check())
        except SdscratchError as error:
            self._findings = [Finding("fail", self.about, str(error))]
        except Exception as error:  # of a driver, a library, a file system: that it fails is the finding
            reason = str(error).strip().partition("\n")[0]
            self._findings = [Finding("fail", self.about, f"{type(error).__name__}: {reason}")]

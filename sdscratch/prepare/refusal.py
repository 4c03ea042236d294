"""Why a picture does not become a sample."""

from __future__ import annotations


class Refused(Exception):
    """reason: a few words that are counted in tables. detail: what was found.

    again: whether asking the web once more may help, and if so not before `wait` seconds.
    """

    def __init__(self, reason: str, detail: str = "", again: bool = False, wait: float = 0.0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail, self.again, self.wait = reason, detail[:200], again, wait

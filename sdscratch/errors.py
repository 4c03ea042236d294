"""Errors that are the user's to mend: printed as one line, without a traceback, with their exit code."""

from __future__ import annotations

import errno
import math
from collections.abc import Collection
from difflib import get_close_matches
from numbers import Integral, Real


class SdscratchError(Exception):
    """What was found, what was expected, what to do. `exit_code` is what the command line returns."""

    exit_code = 2


class ConfigError(SdscratchError):
    """The configuration does not fit the code, or asks for what cannot work."""


class DataError(SdscratchError):
    """Shards, manifests, images, captions or weights are missing, damaged or do not belong together."""


class RunFolderError(SdscratchError):
    """The run folder is in use, holds another run, or has no valid checkpoint."""


class DivergedError(SdscratchError):
    """The run left the finite numbers and did not come back."""

    exit_code = 3


class LostRankError(SdscratchError):
    """One of the processes that trained together is gone, or failed by a bug; the others cannot go on without it."""

    exit_code = 1


class LostWorkerError(SdscratchError):
    """A process that reads the data is gone, most often because the system had no memory left for it."""

    exit_code = 1


class CannotWriteError(SdscratchError):
    """The disk is full or the folder is not writable."""

    exit_code = 4


class StoppedError(SdscratchError):
    """A signal ended the run; the exit code is 128 + its number, as shells say it."""

    def __init__(self, what: str, command: str, signal_number: int) -> None:
        """what: what was stopped, and where. command: the one that goes on, in words."""
        super().__init__(f"{what}: {command} goes on")
        self.what, self.signal_number = what, signal_number
        self.exit_code = 128 + signal_number

    def continued_by(self, command: str) -> StoppedError:
        """The same, for whoever had called another command than that of the run."""
        return StoppedError(self.what, command, self.signal_number)


NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
REFUSED = (errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ELOOP, errno.ENAMETOOLONG, errno.EMFILE)


def of_the_machine(error: Exception) -> SdscratchError | None:
    """What to tell the user where the machine has refused memory, room on a disk or a file; None where that is not it."""
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return CannotWriteError(str(error))
    if isinstance(error, OSError) and error.errno in REFUSED:
        remedy = "Raise the limit (ulimit -n)" if error.errno == errno.EMFILE else "Mend that, or choose another one"
        return SdscratchError(f"the system refuses {error.filename or 'a file'}: {error.strerror}. {remedy}")
    return out_of_memory(error)


def out_of_memory(error: Exception) -> ConfigError | None:
    """What to tell whoever asked for more than the memory holds; None where `error` says something else.

    torch has a class for GPUs and only words for CPUs; neither needs torch to be recognised.
    """
    name, text = type(error).__name__, " ".join(str(error).split())
    if not (isinstance(error, MemoryError) or name == "OutOfMemoryError" or "can't allocate memory" in text):
        return None
    return ConfigError(
        f"the memory does not suffice ({name}: {text[:200]}). Ask for less at once: a smaller size, batch_size or model, "
        "or in training a larger trainer.accumulate_grad_batches"
    )


def check_whole(setting: str, value: object, least: int = 1, most: int | None = None) -> None:
    """Raise ConfigError unless the value of a setting is a whole number, from `least` to `most`."""
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or int(value) < least or (most is not None and int(value) > most):  # type: ignore[call-overload]
        at_most = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{setting} is {value!r}: expected a whole number of at least {least}{at_most}")


def check_number(setting: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    """Raise ConfigError unless the value of a setting is a finite number, from `least` to `most`."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= float(value) <= most:  # type: ignore[arg-type]
        wanted = "a number"
        if math.isfinite(least):
            wanted = f"a number of at least {least}" if most == math.inf else f"a number in [{least}, {most}]"
        raise ConfigError(f"{setting} is {value!r}: expected {wanted}")


def check_choice(setting: str, value: object, choices: Collection[str]) -> None:
    """Raise ConfigError with the choices, and the one that was probably meant, unless the value is among them."""
    if value not in (known := list(choices)):
        guess = "".join(f". Did you mean {name!r}?" for name in get_close_matches(str(value), known, n=1))
        raise ConfigError(f"{setting}={value!r} is unknown; expected {', '.join(known[:-1])} or {known[-1]}{guess}")

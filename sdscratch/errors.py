"""Errors that are the user's to mend: printed as one line, without a traceback, with the exit code of their class."""


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


class CannotWriteError(SdscratchError):
    """The disk is full or the folder is not writable."""

    exit_code = 4

"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import IO, Any, BinaryIO

from sdscratch.errors import CannotWriteError, DataError, RunFolderError

LOCK = ".lock"
# The struct of fcntl(2), and where in it l_type is.
FLOCK, KIND = ("qqihh", 3) if sys.platform == "darwin" else ("hhqqi4x", 0)
HALF = re.compile(r"\..+\.(\d{1,7})\.(?:tmp|old)")  # with the number of the process that writes it


def sha256_of(path: Path) -> str:
    """Of a file's content: 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint_of(*paths: Path) -> str:
    """Changes with any byte of these files, and with their sequence: 16 hexadecimal digits."""
    return hashlib.sha256(b"".join(bytes.fromhex(sha256_of(path)) for path in paths)).hexdigest()[:16]


def is_text(path: Path) -> bool:
    """Whether its name is: to the system any bytes are a name, but nobody can print, send or ask for such a one."""
    return str(path).encode(errors="ignore").decode() == str(path)


_HELD: set[Path] = set()
"""Folders that this process has locked: the system tells a process nothing of its own locks."""


class FolderLock:
    """Keeps other processes out of a folder until this one ends. Forked children do not hold it."""

    def __init__(self, folder: Path, instead: str = "choose another name=") -> None:
        """instead: what whoever finds it taken may do."""
        self.folder, self.instead = folder, instead
        self._file: BinaryIO | None = None
        self._place = folder  # as _HELD has it: the folder may get another name meanwhile

    def take(self, wait: bool = False) -> None:
        """Raises RunFolderError while another process holds it, CannotWriteError where its file cannot be made or locked.

        The folder is made where there is none. wait: until it is free.
        """
        while not self.is_held:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self._file = (self.folder / LOCK).open("a+b", buffering=0)
            except OSError as error:
                raise CannotWriteError(f"cannot write into {self.folder}: {error.strerror or error}") from error
            try:
                fcntl.lockf(self._file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    self.release()
                    raise CannotWriteError(
                        f"cannot lock {self.folder}: {error.strerror or error}. Some network disks have no locks: "
                        "use a folder on another one"
                    ) from error
                self._file.seek(0)
                holder = self._file.read().decode() or "unknown"
                self.release()
                raise RunFolderError(
                    f"{self.folder} is in use by process {holder}. Wait for it, or {self.instead}"
                ) from error
            if not self._is_there():  # whoever held it has removed it meanwhile: the next one would make another
                self.release()
        self._place = self.folder.resolve()
        _HELD.add(self._place)
        try:
            self._file.truncate(0)  # type: ignore[union-attr]
            self._file.write(str(os.getpid()).encode())  # type: ignore[union-attr]
        except OSError as error:
            self.release()
            raise CannotWriteError(f"cannot write into {self.folder}: {error.strerror or error}") from error

    @property
    def is_held(self) -> bool:
        """By this process."""
        return self._file is not None

    @property
    def is_taken(self) -> bool:
        """Whether a living process holds it, this one or another. Only asks: whoever wants it meanwhile gets it."""
        if self.folder.resolve() in _HELD:
            return True  # not to be opened here: closing any file of a lock lets others in
        wanted = [fcntl.F_WRLCK if field == KIND else 0 for field in range(5)]  # all of the file
        with suppress(OSError):
            check_file(self.folder / LOCK)
            with (self.folder / LOCK).open("rb") as file:
                found = struct.unpack(FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, struct.pack(FLOCK, *wanted)))
            return bool(found[KIND] != fcntl.F_UNLCK)
        return False

    def release(self) -> None:
        """Let others in."""
        if self._file is not None:
            self._file.close()
            self._file = None
            _HELD.discard(self._place)

    def remove(self) -> None:
        """Let others in, and leave no file behind."""
        if self.is_held:  # else it may be another's
            (self.folder / LOCK).unlink(missing_ok=True)
        self.release()

    @contextmanager
    def held(self, wait: bool = False) -> Iterator[None]:
        """Take it for a while, then remove it. wait, and what it raises: as `take`."""
        self.take(wait)
        try:
            yield
        finally:
            self.remove()

    def _is_there(self) -> bool:
        """Whether what is locked is still the file of that name."""
        try:
            return os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.folder / LOCK))  # type: ignore[union-attr]
        except OSError:
            return False


def write_atomically(
    path: Path,
    write: Callable[[IO[bytes]], object],
    job: str = "",
    rename: Callable[[Path, Path], object] = os.replace,
) -> None:
    """Let `write` fill a file beside `path`, make it durable, then give it its name. Leaves nothing behind on error.

    job: its name in crash points: JOB:tmp (half written), JOB:fsync (whole, without its name), JOB:rename.
    rename: how it gets its name: in place of a file that has it, or `unless_taken`, or by what also puts its company beside
    it. What that raises leaves nothing behind either, and an error with a path of its own is left as it is.
    Raises CannotWriteError when the disk is full or the folder is not writable.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            write(file)
            crash_point(f"{job}:tmp")
            file.flush()
            os.fsync(file.fileno())
        crash_point(f"{job}:fsync")
        rename(temporary, path)
        crash_point(f"{job}:rename")
        _make_durable(path.parent)  # the new name is durable only when its folder is
    except (OSError, RuntimeError) as error:
        reason = error if isinstance(error, OSError) else error.__context__  # torch.save hides the cause in there
        if not isinstance(reason, OSError):
            raise
        raise CannotWriteError(
            f"cannot write {path}: {reason.strerror or reason}. Free some space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def unless_taken(temporary: Path, path: Path) -> None:
    """Give a file its name unless another has it: of several processes that want it at once the first one's stays."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)


def replace_folder(folder: Path, write: Callable[[Path], object], only_new: bool = False) -> None:
    """Let `write` fill a folder beside `folder`, make it durable, then put it in that place. Leaves nothing behind on error.

    only_new: not in place of one that holds anything by then. Raises OSError.
    """
    remove_halves(folder.parent, folder.name)
    half, old = (folder.with_name(f".{folder.name}.{os.getpid()}.{ending}") for ending in ("tmp", "old"))
    for leftover in (half, old):  # of another process that had this number
        shutil.rmtree(leftover, ignore_errors=True)
    half.mkdir(parents=True)
    try:
        write(half)
        for path in [*half.rglob("*"), half]:
            _make_durable(path)
        if folder.exists() and not only_new:
            folder.rename(old)
        half.rename(folder)
    finally:
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(half, ignore_errors=True)
    _make_durable(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _make_durable(path: Path) -> None:
    """Of a file what is in it, of a folder the names in it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crash_point(name: str) -> None:
    """End the process here, as a power cut would, if SDS_CRASH_AT is this name: how tests reach the moments in between."""
    if os.environ.get("SDS_CRASH_AT") == name:
        os._exit(9)


def remove_halves(folder: Path, name: str = "") -> None:
    """Remove from `folder` the files and folders that processes which are no more had begun to write there.

    name: only what was to be called so.
    """
    for path in halves(folder, name):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def halves(folder: Path, name: str = "") -> list[Path]:
    """What `remove_halves` would remove."""
    found = [(path, HALF.fullmatch(path.name)) for path in folder.glob(f".{escape(name) or '*'}.*.*")]
    return [path for path, half in found if half and not _is_alive(int(half[1]))]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)  # it may be someone else's
    return True


def write_json(path: Path, content: Mapping[str, Any], job: str = "") -> None:
    """Write readable JSON, in its own order. job: as in write_atomically."""
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()), job)


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As os.walk, but raise DataError for a folder that cannot be read: what is in it would be lost in silence.

    One that is gone meanwhile is passed over.
    """

    def refuse(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            raise DataError(
                f"{error.filename} cannot be read: {error.strerror or error}. Mend that, or move it elsewhere"
            ) from error

    return os.walk(folder, onerror=refuse)


def check_file(path: Path) -> None:
    """Raise OSError for what is no file, or is not there: a pipe would be waited for, and a device has no end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(errno.EINVAL, "it is no file", str(path))


def read_bytes(path: Path) -> bytes:
    """All of a file. Raises OSError, as check_file does."""
    check_file(path)
    return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """What write_json has written; {} where there is nothing of the kind."""
    try:
        content = json.loads(read_bytes(path)) if path.is_file() else {}
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}

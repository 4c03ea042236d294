"""Where the members of a tar file lie. Extracts nothing, and takes no damaged header for the end of the file."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from sdscratch.errors import DataError

_BLOCK = 512
_LONGEST_EXTENSION = 1 << 20  # bytes of an extended header; real ones have some hundred
_FILE = (b"0", b"\0", b"7")
_WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", b"5", b"6")  # links, devices, folders, pipes: never of interest
_NAME = re.compile(r"[\w\-./ ]{1,256}", re.ASCII)


class Member(NamedTuple):
    """A plain file in a tar: its name, and the place and size in bytes of its content."""

    name: str
    offset: int
    size: int


def members(path: Path) -> Iterator[Member]:
    """The plain files of an uncompressed tar (USTAR, GNU or pax names), in order, without links, devices and folders.

    Raises DataError naming the file and the place when a header is damaged, when the file ends too early, or when a
    name is none that a data set should hold (other than letters, digits and `_-./ `, with `..` in it, or absolute).
    """
    try:
        with open(path, "rb") as file:
            yield from _members(path, partial(os.pread, file.fileno()), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}. Restore or delete it.") from error


def compressed_members(path: Path) -> Iterator[tuple[Member, Callable[[], bytes]]]:
    """The plain files of a .tgz in order, each with what reads its content, to be called before the next is asked for.

    Raises DataError as `members` does, and when the compression is damaged or ends too early; its checksum comes last.
    """
    with _decompressed(path) as read:
        end = 0
        for member in _members(path, read, None):
            yield member, partial(_content, path, read, member)
            end = member.offset + member.size
        while chunk := read(_LONGEST_EXTENSION, end):
            end += len(chunk)


def compressed_lines(path: Path, ending: str) -> Iterator[bytes]:
    """The lines of the first file in a .tgz whose name ends so. Raises DataError as above, and where there is none."""
    with _decompressed(path) as read:
        found = next((member for member in _members(path, read, None) if member.name.endswith(ending)), None)
        if found is None:
            raise DataError(f"{path} holds no {ending} file.")
        rest, end = b"", found.offset + found.size
        for offset in range(found.offset, end, _LONGEST_EXTENSION):
            *lines, rest = (rest + read(min(_LONGEST_EXTENSION, end - offset), offset)).split(b"\n")
            yield from lines
        if rest:
            yield rest


def _content(path: Path, read: Callable[[int, int], bytes], member: Member) -> bytes:
    content = read(member.size, member.offset)
    if len(content) != member.size:
        raise DataError(
            f"{path} is cut off: {member.name} has {len(content)} of {member.size} bytes. Restore or delete it."
        )
    return content


@contextmanager
def _decompressed(path: Path) -> Iterator[Callable[[int, int], bytes]]:
    """What reads so many bytes from an offset. Offsets must rise: to go back would be to begin again."""
    with gzip.open(path) as file:

        def read(size: int, offset: int) -> bytes:
            try:
                file.seek(offset)
                return file.read(size)
            except (EOFError, OSError, zlib.error) as error:
                raise DataError(f"{path} is damaged: {error}. Restore or delete it.") from error

        yield read


def _members(path: Path, read: Callable[[int, int], bytes], end: int | None) -> Iterator[Member]:
    """read: so many bytes from an offset; the offsets rise. end: size in bytes, where it is known beforehand."""
    offset, name, size = 0, None, None  # the last two: said by an extended header, about the next file
    while True:
        header = read(_BLOCK, offset)
        if header == bytes(_BLOCK):
            if read(_LONGEST_EXTENSION, offset + _BLOCK).strip(b"\0"):
                raise DataError(f"{path} is damaged at byte {offset}: an empty block. Restore or delete it.")
            return
        if len(header) < _BLOCK:
            raise DataError(
                f"{path} is cut off at byte {offset + len(header)}: a tar ends with empty blocks. Restore or delete it."
            )
        kind, stored = header[156:157], _number(header[124:136])
        if stored is None or not _checksum_fits(header):
            raise DataError(f"{path} is damaged at byte {offset}: no tar header there. Restore or delete it.")
        length = size if size is not None and kind in _FILE else 0 if kind in _WITHOUT_CONTENT else stored
        content = offset + _BLOCK
        if end is not None and content + length > end:
            raise DataError(f"{path} is cut off: a member at byte {offset} needs {length} bytes. Restore or delete it.")
        offset = content + -(-length // _BLOCK) * _BLOCK

        if kind in (b"L", b"x", b"K", b"g"):
            if length > _LONGEST_EXTENSION:
                raise DataError(f"{path} has an extended header of {length} bytes before byte {offset}. Delete it.")
            extension = read(length, content)
            if kind == b"L":
                name = _text(extension)
            elif kind == b"x":
                fields = _pax(extension)
                name = fields.get("path", name)
                if not re.fullmatch(r"[0-9]{0,30}", fields.get("size", "")):
                    raise DataError(f"{path} is damaged before byte {offset}: no size there. Restore or delete it.")
                size = int(fields["size"]) if fields.get("size") else None
            continue
        if kind in _FILE:
            found = name if name is not None else _ustar_name(header)
            if not _NAME.fullmatch(found) or ".." in found or found.startswith("/"):
                raise DataError(
                    f"{path} holds a member named {found[:100]!r}. Expected up to 256 letters, digits and '_-./ ', "
                    "without '..' and not from the root. Write the shard again with other names."
                )
            yield Member(found.removeprefix("./"), content, length)
        elif kind not in _WITHOUT_CONTENT:
            raise DataError(
                f"{path} has a member of unknown type {kind!r} before byte {offset}. Write it as plain files."
            )
        name = size = None


def _checksum_fits(header: bytes) -> bool:
    return _number(header[148:156]) == sum(header) - sum(header[148:156]) + 8 * ord(" ")


def _number(field: bytes) -> int | None:
    """Octal digits, or the base-256 that GNU tar writes for sizes beyond 8 GiB; None when it is neither."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip()
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _ustar_name(header: bytes) -> str:
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{_text(header[:100])}" if prefix else _text(header[:100])


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", errors="replace")


def _pax(extension: bytes) -> dict[str, str]:
    """Lines of "LENGTH KEYWORD=VALUE\\n"."""
    fields = {}
    while match := re.match(rb"(\d{1,7}) ([^=]{1,99})=", extension):
        length = int(match[1])
        if not match.end() <= length <= len(extension):
            break
        fields[_text(match[2])] = _text(extension[match.end() : length - 1])
        extension = extension[length:]
    return fields

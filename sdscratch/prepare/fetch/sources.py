"""Where collections come from: a data set on the hub, addresses on the web, or a folder that mirrors either."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sdscratch.errors import ConfigError, DataError
from sdscratch.files import crash_point
from sdscratch.prepare.fetch.web_file import Bytes, fetch_file, size_of


@dataclass(frozen=True)
class RemoteFile:
    """name: its path below the output folder. size in bytes and sha256, where whoever holds it tells."""

    name: str
    size: int | None = None
    sha256: str | None = None


class Source(Protocol):
    """A collection. licence, status, notes: what whoever fetches it should know before."""

    licence: str
    status: str
    notes: str

    def files(self) -> list[RemoteFile]:
        """What there is to fetch, without fetching it."""

    def names(self) -> Sequence[str]:
        """The names of its files, or patterns of them, as a mirror has them too."""

    def fetch(self, file: RemoteFile, folder: Path, progress: Bytes) -> None:
        """Bring one file to its name below `folder`, going on where an earlier attempt ended."""


@dataclass(frozen=True)
class Web:
    """Files at http(s) addresses. urls: address -> sha256, or null where none was published."""

    urls: Mapping[str, str | None]
    licence: str
    status: str
    notes: str = ""

    def __post_init__(self) -> None:
        if len(set(self.names())) != len(self.urls) or not all(self.names()):
            raise ConfigError(
                f"source.urls: expected addresses that end in different file names, found {list(self.urls)}"
            )

    def names(self) -> list[str]:
        return [PurePosixPath(unquote(urlsplit(url).path)).name for url in self.urls]

    def files(self) -> list[RemoteFile]:
        return [
            RemoteFile(name, size_of(url), sha256)
            for name, (url, sha256) in zip(self.names(), self.urls.items(), strict=True)
        ]

    def fetch(self, file: RemoteFile, folder: Path, progress: Bytes) -> None:
        url = dict(zip(self.names(), self.urls, strict=True))[file.name]
        fetch_file(url, folder / file.name, progress)


@dataclass(frozen=True)
class Hub:
    """Files of a data set on the hub. patterns: as in `images/part-0000*.zip`. Reads HF_TOKEN where the set asks for one."""

    repo: str
    patterns: list[str]
    licence: str
    status: str
    notes: str = ""
    revision: str = "main"

    def names(self) -> list[str]:
        return self.patterns

    def files(self) -> list[RemoteFile]:
        from huggingface_hub import HfApi

        with _reading_hub(self.repo):
            siblings = HfApi().dataset_info(self.repo, revision=self.revision, files_metadata=True).siblings or []
        found = [RemoteFile(s.rfilename, s.size, s.lfs.sha256 if s.lfs else None) for s in siblings]
        return _matching(found, self.patterns, f"the data set {self.repo}")

    def fetch(self, file: RemoteFile, folder: Path, progress: Bytes) -> None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # ours counts all files
        with _reading_hub(self.repo):
            hf_hub_download(self.repo, file.name, repo_type="dataset", revision=self.revision, local_dir=folder)
        progress(file.size or 0)


@dataclass(frozen=True)
class Mirror:
    """The files of another source, as a folder holds them."""

    of: Source
    folder: Path

    @property
    def licence(self) -> str:
        return self.of.licence

    @property
    def status(self) -> str:
        return self.of.status

    @property
    def notes(self) -> str:
        return self.of.notes

    def names(self) -> Sequence[str]:
        return self.of.names()

    def files(self) -> list[RemoteFile]:
        there = sorted(path for path in self.folder.rglob("*") if path.is_file())
        found = [RemoteFile(path.relative_to(self.folder).as_posix(), path.stat().st_size) for path in there]
        return _matching(found, self.names(), f"the folder {self.folder}")

    def fetch(self, file: RemoteFile, folder: Path, progress: Bytes) -> None:
        target = folder / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        half = target.with_name(f".{target.name}.part")
        with (self.folder / file.name).open("rb") as source, half.open("wb") as copy:
            while chunk := source.read(1 << 20):
                copy.write(chunk)
                progress(copy.tell())
                crash_point("fetch:chunk")
            copy.flush()
            os.fsync(copy.fileno())
        os.replace(half, target)


def _matching(found: list[RemoteFile], patterns: Sequence[str], where: str) -> list[RemoteFile]:
    """Those of the patterns, by name. Raises DataError for a pattern that none has, and names that lead elsewhere."""
    for pattern in patterns:
        if not any(fnmatchcase(file.name, pattern) for file in found):
            has = ", ".join(file.name for file in found[:5]) or "nothing"
            raise DataError(f"{where} has no {pattern}; it has {has}{', ...' if len(found) > 5 else ''}")
    chosen = [file for file in found if any(fnmatchcase(file.name, pattern) for pattern in patterns)]
    for file in chosen:
        if PurePosixPath(file.name).is_absolute() or ".." in PurePosixPath(file.name).parts:
            raise DataError(f"{where} names a file {file.name!r}, which lies outside of it: refused")
    return sorted(chosen, key=lambda file: file.name)


@contextmanager
def _reading_hub(repo: str) -> Iterator[None]:
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        yield
    except GatedRepoError as error:
        raise DataError(
            f"{repo} asks you to agree to its terms on its page first; then set HF_TOKEN to your token"
        ) from error
    except RepositoryNotFoundError as error:
        raise DataError(f"there is no data set {repo}, or not for you: if it is private, set HF_TOKEN") from error
    except OfflineModeIsEnabled as error:
        raise DataError(
            f"{repo} is on the hub, and HF_HUB_OFFLINE is set: unset it, or set mirror= to a folder"
        ) from error
    except (HTTPError, HFValidationError, FileMetadataError, LocalEntryNotFoundError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"the hub does not give {repo}: {said}. The same command goes on") from error

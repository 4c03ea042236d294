"""Faults, as they happen: processes are killed, disks fill, bits flip. Short forms run always, long ones by `make faults`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from harness import ForkServer
from tiny import SMALLER

from sdscratch.run_folder import RunFolder

Words = Callable[..., list[str]]


class Finished(NamedTuple):
    """A run that nothing happened to, and how long it took."""

    run: RunFolder
    seconds: float


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.xdist_group("faults"))  # one warm process for them all


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """The warm process."""
    with ForkServer(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture(scope="session")
def train_words(tiny_data: Path) -> Words:
    """`train_words(runs, "name=x", ...)`: the command line of a tiny training with its runs in `runs`."""

    def words(runs: Path, *overrides: str) -> list[str]:
        places = (f"paths.runs={runs}", f"paths.data={tiny_data}", "threads=1")
        return ["train", "experiment=tiny", *places, *SMALLER, *overrides]

    return words


@pytest.fixture(scope="session")
def finished(
    server: ForkServer, train_words: Words, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Finished]:
    """`finished(*overrides)`: the run of these overrides, undisturbed; trained once for all who ask. Look, do not touch."""
    runs: dict[tuple[str, ...], Finished] = {}

    def run(*overrides: str) -> Finished:
        if overrides not in runs:
            folder = tmp_path_factory.mktemp("finished")
            attempt = server.attempt(train_words(folder, *overrides))
            assert attempt.rc == 0, attempt.output
            runs[overrides] = Finished(RunFolder(folder / "tiny"), attempt.seconds)
        return runs[overrides]

    return run


@pytest.fixture
def copied(tmp_path: Path) -> Callable[[RunFolder], RunFolder]:
    """`copied(run)`: the run in a folder of this test's own."""

    def copy(run: RunFolder) -> RunFolder:
        return RunFolder(shutil.copytree(run.path, tmp_path / "copy" / run.path.name))

    return copy

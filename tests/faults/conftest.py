"""Faults, as they happen: processes are killed, disks fill, bits flip. Short forms run always, long ones by `make faults`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import ForkServer
from tiny import SMALLER

Words = Callable[..., list[str]]


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

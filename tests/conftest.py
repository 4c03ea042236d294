"""For all tests: one thread, no network, the real data pack, and the tiny experiment: its configuration, and a run of it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tiny import compose_tiny

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}  # read when torch loads; other counts give other last bits
os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sdscratch.run_folder import RunFolder

TinyConfig = Callable[..., "DictConfig"]


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it to what it starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("filterwarnings", "ignore:.*LeafSpec.*")  # Lightning's, of its own code


@pytest.fixture(autouse=True)
def no_streams_of_earlier_tests() -> Iterator[None]:
    """Hydra has a sweep's process log to its stdout, which is that of one test here, and closed for those after it."""
    yield
    root = logging.getLogger()
    root.handlers[:] = [handler for handler in root.handlers if type(handler) is not logging.StreamHandler]
    root.setLevel(logging.WARNING)


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the tiny experiment's scenes are drawn once for all tests."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture
def data_pack() -> Callable[[str], Path]:
    """Folders of the real data pack, read-only and without manifests; skips where it is absent."""
    root = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[2] / "shared" / "data"))

    def folder(name: str) -> Path:
        if not (root / name).is_dir():
            pytest.skip(f"no {name} in {root}: set SDSCRATCH_DATA_PACK")
        return root / name

    return folder


@pytest.fixture
def tiny_config(tmp_path: Path, tiny_data: Path) -> TinyConfig:
    """`tiny_config("max_steps=10", ...)`: the tiny experiment with its runs in this test's folder."""
    return lambda *overrides: compose_tiny(tmp_path / "runs", tiny_data, *overrides)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> RunFolder:
    """The tiny experiment as it comes, trained to its end: 30 steps. Look, do not touch: tests share it."""
    from sdscratch.commands.train import train

    return train(compose_tiny(tmp_path_factory.mktemp("runs"), tiny_data))

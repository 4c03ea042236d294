from __future__ import annotations

import os

import pytest

from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare.engine import map_shards


def square(number: int) -> tuple[int, int]:
    if number < 0:
        raise DataError(f"{number} is below 0")
    return number * number, os.getpid()


@pytest.mark.parametrize("workers", [0, 2])
def test_every_task_is_done_once_and_in_as_many_processes_as_asked_for(workers):
    results = sorted(map_shards(square, range(8), workers=workers))
    assert [result for result, _ in results] == [number * number for number in range(8)]
    processes = {process for _, process in results}
    assert processes == {os.getpid()} if workers == 0 else os.getpid() not in processes and len(processes) <= workers


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_task_is_raised_as_it_was(workers):
    with pytest.raises(DataError, match="-1 is below 0"):
        list(map_shards(square, [1, -1, 2], workers=workers))


def test_an_unknown_engine_or_number_of_workers_is_refused():
    with pytest.raises(ConfigError, match="engine='slurm' is unknown; expected local or ray"):
        list(map_shards(square, [1], engine="slurm"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="workers is -1"):
        list(map_shards(square, [1], workers=-1))

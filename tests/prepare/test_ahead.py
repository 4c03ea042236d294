"""Working ahead of whoever asks."""

from __future__ import annotations

import threading

import pytest

from sdscratch.errors import DataError
from sdscratch.prepare.encode.ahead import map_ahead


def test_results_come_in_their_sequence_whoever_is_done_first():
    later = threading.Event()

    def work(number: int) -> int:
        if number == 0:
            assert later.wait(60), "nothing was begun ahead"
        if number == 2:
            later.set()
        return number * number

    assert list(map_ahead(work, range(6), threads=3, ahead=3)) == [0, 1, 4, 9, 16, 25]


def test_no_more_is_begun_than_is_allowed():
    begun = list[int]()
    results = map_ahead(begun.append, range(100), threads=1, ahead=4)
    for taken in range(1, 20):
        next(results)
        assert len(begun) <= taken + 4
    results.close()
    assert len(begun) < 100


def test_an_error_is_raised_when_its_turn_comes():
    def work(number: int) -> int:
        if number == 2:
            raise DataError("two is bad")
        return number

    results = map_ahead(work, range(9), threads=2, ahead=5)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(DataError, match="two is bad"):
        next(results)


@pytest.mark.parametrize("ahead", [0, 1, 50])
def test_all_is_done_however_far_ahead(ahead):
    assert list(map_ahead(str, range(20), threads=2, ahead=ahead)) == [str(n) for n in range(20)]

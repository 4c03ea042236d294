from __future__ import annotations

import pickle
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdscratch.data.order import Order, SequentialOrder, data_step, skip
from sdscratch.errors import DataError


def epoch(order: Order | SequentialOrder, number: int, samples: int) -> list[int]:
    return [order.at(position) for position in range(number * samples, (number + 1) * samples)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any), st.integers(1, 5), st.integers(0, 2**31))
def test_an_epoch_holds_every_sample_once(shard_sizes, window, seed):
    order, samples = Order(shard_sizes, seed, window), sum(shard_sizes)
    for number in (0, 1, 7):
        assert sorted(epoch(order, number, samples)) == list(range(samples))


def test_epochs_and_seeds_give_different_orders():
    first = Order([50] * 8, seed=1)
    orders = [epoch(first, number, 400) for number in range(3)] + [epoch(Order([50] * 8, seed=2), 0, 400)]
    assert len({tuple(order) for order in orders}) == 4


def test_positions_may_be_asked_for_in_any_order():
    sizes, positions = [5, 9, 1, 30, 2], np.random.default_rng(0).permutation(47 * 3)
    fresh = [Order(sizes, seed=3, window=2).at(int(p)) for p in positions]
    reused = Order(sizes, seed=3, window=2)
    assert [reused.at(int(p)) for p in positions] == fresh
    assert [pickle.loads(pickle.dumps(reused)).at(int(p)) for p in positions] == fresh


@pytest.mark.parametrize("window", [1, 3, 4])
def test_reads_are_near_sequential(window):
    shards, size = 12, 25
    order = Order([size] * shards, seed=0, window=window)
    found = epoch(order, 0, shards * size)
    touched = [
        {n // size for n in found[start : start + window * size]} for start in range(0, len(found), window * size)
    ]
    assert all(len(window_shards) == window for window_shards in touched)
    assert sum(map(len, touched)) == shards  # each shard belongs to one window
    assert [min(s) for s in touched] != sorted(min(s) for s in touched)


def test_neighbours_within_a_window_come_from_all_its_shards():
    found = epoch(Order([100] * 4, seed=0, window=4), 0, 400)
    assert {n // 100 for n in found[:30]} == {0, 1, 2, 3}


def test_memory_does_not_grow_with_the_samples():
    order = Order([1000] * 100_000, seed=0)
    for position in (0, 10**7, 10**8, 10**9 + 7):
        assert 0 <= order.at(position) < 10**8
    assert sum(len(window) for window in order._windows.values()) <= 3 * 4 * 1000


def test_sequential_goes_on_from_the_start():
    assert epoch(SequentialOrder(3), 0, 7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize("make", [lambda: Order([], seed=0), lambda: Order([0, 0], 0), lambda: SequentialOrder(0)])
def test_nothing_to_order_is_an_error(make):
    with pytest.raises(DataError, match="no samples"):
        make()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=6),
)
def test_skipped_ranges_are_passed_over_and_nothing_else(ranges):
    skipped: list[list[int]] = []
    for first, length in ranges:
        skipped = skip(skipped, first, first + length)
    read = [data_step(step, skipped) for step in range(100)]
    never = {step for first, length in ranges for step in range(first, first + length)}
    assert read == [step for step in range(200) if step not in never][:100]
    assert all(end < first for (_, end), (first, _) in pairwise(skipped))

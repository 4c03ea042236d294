"""A mixture is exact: after every global batch each source has given its share to within one sample."""

from __future__ import annotations

import pickle
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdscratch.data.mixture import MOST_BATCHES, Mixture, apportion, whole_shares
from sdscratch.errors import ConfigError

ODD = {
    "p7": (37, 44, 9, 10),
    "p6": (60, 20, 20),
    "rare": (Fraction("0.5"), Fraction("0.4998"), Fraction("1e-4"), Fraction("1e-4")),
    "one and many rare": (9400, 100, 100, 100, 100, 100, 99, 1),
    "seven alike": (1,) * 7,
    "one at each scale": (10000, 1000, 100, 10, 1),
    "replay": (Fraction("0.85") * Fraction(37, 100), Fraction("0.85") * Fraction(63, 100), *[Fraction("0.05")] * 3),
}


def errors(mixture: Mixture, shares, batches) -> np.ndarray:
    """Samples that each source has given beyond its share, by batch, times the common denominator, and that; exact."""
    weights = whole_shares(shares, 10**9)
    given = np.array([mixture.taken(batch) for batch in batches], dtype=object)
    samples = np.array(batches, dtype=object)[:, None] * mixture.global_batch_size
    assert (given.sum(1) == samples[:, 0]).all()
    return given * sum(weights) - samples * np.array(weights, dtype=object), sum(weights)


@pytest.mark.parametrize("shares", ODD.values(), ids=ODD)
@pytest.mark.parametrize("batch_size", [1, 4, 96, 97])
def test_after_every_batch_each_source_is_within_one_sample_of_its_share(shares, batch_size):
    mixture = Mixture(shares, batch_size, seed=0)
    batches = [*range(1000), *np.random.default_rng(0).integers(0, 10**8, 500).tolist(), 10**12]
    found, one_sample = errors(mixture, shares, batches)
    assert abs(found).max() < one_sample


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 3, 7, 10, 90, 91, 300]), min_size=3, max_size=7), st.integers(1, 100))
def test_no_source_ever_takes_a_sample_back_and_every_period_is_exact(weights, batch_size):
    total = sum(weights)
    taken = apportion(weights, batch_size, total)
    assert (np.diff(taken, axis=0) >= 0).all()
    assert (np.diff(taken.sum(1)) == batch_size).all()
    assert taken[-1].tolist() == [batch_size * weight for weight in weights]
    exact = np.arange(total + 1)[:, None] * batch_size * np.array(weights)
    assert abs(taken * total - exact).max() < total


def test_a_run_holds_each_sample_of_each_source_once():
    mixture, batches = Mixture((37, 44, 9, 10), 96, seed=3), 2_000
    seen = [np.zeros(batches * 96, np.int8) for _ in range(4)]
    for number in range(batches):
        sources, within = mixture.batch(number)
        for source in range(4):
            seen[source][within[sources == source]] += 1
    for counts, share in zip(seen, (0.37, 0.44, 0.09, 0.10), strict=True):
        given = int(counts.sum())
        assert abs(given - share * batches * 96) < 1, share
        assert counts[:given].min() == counts[:given].max() == 1  # 0, 1, 2, ... without gaps


def test_a_position_is_enough_to_know_what_lies_there():
    shares, positions = (5, 3, 1), np.random.default_rng(0).permutation(8 * 60).tolist()
    fresh = {p: Mixture(shares, 8, seed=1).at(p) for p in positions}
    reused = Mixture(shares, 8, seed=1)
    assert {p: reused.at(p) for p in positions} == fresh
    assert {p: pickle.loads(pickle.dumps(reused)).at(p) for p in positions} == fresh
    for number in range(60):
        sources, within = reused.batch(number)
        assert [fresh[8 * number + i] for i in range(8)] == list(zip(sources.tolist(), within.tolist(), strict=True))
    assert reused.at(10**13)[1] == pytest.approx(10**13 * shares[reused.at(10**13)[0]] / 9, abs=8)


def test_inside_a_batch_the_sources_come_in_an_order_of_that_batch_and_seed():
    one, other = Mixture((1, 1), 32, seed=1), Mixture((1, 1), 32, seed=2)
    orders = [tuple(mixture.batch(number)[0]) for mixture in (one, other) for number in range(20)]
    assert len(set(orders)) == 40
    first = np.mean([order[0] for order in orders])
    assert 0.25 < first < 0.75


def test_a_source_counts_up_inside_a_batch():
    sources, within = Mixture((2, 1), 48, seed=0).batch(5)
    assert [np.diff(within[sources == source]).tolist() for source in (0, 1)] == [[1] * 31, [1] * 15]


def test_only_ratios_count():
    expected = [Mixture((3, 1), 8, seed=0).at(p) for p in range(64)]
    for shares in ((60, 20), (Fraction("0.75"), Fraction("0.25"))):
        assert [Mixture(shares, 8, seed=0).at(p) for p in range(64)] == expected


def test_shares_that_hardly_ever_repeat_drift_by_less_than_a_sample_in_millions():
    shares = [Fraction(str(share)) for share in (0.61803398874, 0.14142135623, 0.17320508075)]
    mixture = Mixture(shares, 64, seed=0)
    found, one_sample = errors(mixture, shares, range(0, MOST_BATCHES + 1, 7))  # 4.2 million positions
    assert abs(found).max() < one_sample
    found, one_sample = errors(mixture, shares, range(MOST_BATCHES, 3 * MOST_BATCHES, 7))
    assert abs(found).max() < 3 * one_sample


def test_shares_are_the_decimal_numbers_as_written():
    assert whole_shares([Fraction("0.1"), Fraction("0.2"), 1], 100) == [1, 2, 10]


@pytest.mark.parametrize("shares", [(), (1, 0), (1, -1), (10**9, 1)])
def test_what_would_never_or_hardly_ever_come_is_refused(shares):
    with pytest.raises(ConfigError, match="cannot be mixed"):
        Mixture(shares, 4, seed=0)

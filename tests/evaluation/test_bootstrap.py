"""Intervals by resampling hold what they should, about as often as they say."""

import pytest
import torch

from sdscratch.evaluation.bootstrap import estimate, mean


def test_an_interval_of_a_mean_is_that_of_its_standard_error():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0))
    found = estimate(mean, values, replicates=2000)
    reach = 1.96 * float(values.std()) / 20
    assert found.value == pytest.approx(float(values.mean()), abs=1e-6) and found.samples == 400
    assert (found.high - found.value, found.value - found.low) == pytest.approx((reach, reach), rel=0.1)


def test_about_95_of_100_intervals_hold_the_truth():
    draws = torch.randn(200, 60, generator=torch.Generator().manual_seed(1))
    found = [estimate(mean, row, replicates=100, seed=i) for i, row in enumerate(draws)]
    assert 0.88 <= sum(e.low <= 0 <= e.high for e in found) / len(found) <= 0.99


def test_the_same_samples_give_the_same_interval_and_no_replicates_none():
    values = torch.arange(10.0)
    assert estimate(mean, values, replicates=20) == estimate(mean, values, replicates=20)
    assert estimate(mean, values, replicates=0) == (4.5, None, None, 10)


def test_pairs_stay_together():
    a = torch.randn(100, generator=torch.Generator().manual_seed(3))
    found = estimate(lambda x, y: mean(x - y), a, a + 1, replicates=50, paired=True)
    assert (found.low, found.value, found.high) == pytest.approx((-1, -1, -1), abs=1e-6)


def test_several_samples_are_resampled_apart():
    a, b = torch.randn(2, 300, generator=torch.Generator().manual_seed(2))
    found = estimate(lambda x, y: mean(x) - mean(y), a, b, replicates=500)
    alone = estimate(mean, a, replicates=500)
    assert found.high - found.low == pytest.approx(2**0.5 * (alone.high - alone.low), rel=0.2)

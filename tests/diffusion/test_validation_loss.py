"""The validation loss is a mean over samples, however they came in batches."""

from __future__ import annotations

import pytest
import torch

from sdscratch.diffusion import ValidationLoss

LOSSES = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0])
TIMESTEPS = torch.tensor([0, 249, 250, 500, 750, 999])


def test_every_loss_counts_once_in_the_mean_and_once_in_its_bin():
    validation = ValidationLoss()
    validation.add(LOSSES, TIMESTEPS)
    assert validation.result() == {
        "loss": pytest.approx(63 / 6),
        "loss_t000_250": 1.5,
        "loss_t250_500": 4.0,
        "loss_t500_750": 8.0,
        "loss_t750_1000": 24.0,
    }


def test_the_result_does_not_depend_on_batches_or_ranks():
    whole, first, second = ValidationLoss(), ValidationLoss(), ValidationLoss()
    whole.add(LOSSES, TIMESTEPS)
    first.add(LOSSES[:1], TIMESTEPS[:1])
    second.add(LOSSES[1:3], TIMESTEPS[1:3])
    second.add(LOSSES[3:], TIMESTEPS[3:])
    first.totals += second.totals
    assert first.result() == whole.result()


def test_other_schedules_and_continuous_times_have_their_bins():
    validation = ValidationLoss(num_train_timesteps=200, num_bins=2)
    validation.add(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([99.9, 100.0, 200.0]))
    assert validation.result() == {"loss": 3.0, "loss_t000_100": 1.0, "loss_t100_200": 4.0}


def test_what_nothing_was_added_to_is_not_reported():
    validation = ValidationLoss()
    assert validation.result() == {}
    validation.add(torch.tensor([2.0]), torch.tensor([10]))
    assert validation.result() == {"loss": 2.0, "loss_t000_250": 2.0}


def test_each_source_has_its_mean_beside_that_of_all():
    validation = ValidationLoss(sources=("faces", "cities", "food"))
    validation.add(LOSSES, TIMESTEPS, ["faces", "cities", "faces", "faces", "cities", "faces"])
    found = validation.result()
    assert (found["loss/faces"], found["loss/cities"]) == (pytest.approx((1 + 4 + 8 + 32) / 4), 9.0)
    assert "loss/food" not in found and found["loss"] == pytest.approx(63 / 6)

"""The validation loss is a mean over samples, however they came in batches."""

from __future__ import annotations

import math

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


SOURCES = ["faces", "cities", "faces", "faces", "cities", "faces"]
FACES, CITIES = (1 + 4 + 8 + 32) / 4, (2 + 16) / 2


@pytest.mark.parametrize(
    ("weights", "overall"),
    [((3, 1, 5), (3 * FACES + CITIES) / 4), ((1, 0, 0), FACES), ((0.2, 0.2, 0), (FACES + CITIES) / 2)],
)
def test_each_source_has_its_mean_and_counts_with_its_weight_in_the_one_over_all(weights, overall):
    validation = ValidationLoss(source_weights=dict(zip(("faces", "cities", "food"), weights, strict=True)))
    validation.add(LOSSES, TIMESTEPS, SOURCES)
    found = validation.result()
    assert (found["loss/faces"], found["loss/cities"]) == (FACES, CITIES)
    assert "loss/food" not in found and found["loss"] == pytest.approx(overall)


def test_a_source_that_counts_nothing_counts_in_no_bin():
    validation = ValidationLoss(source_weights={"faces": 1.0, "cities": 0.0})
    validation.add(LOSSES, TIMESTEPS, SOURCES)
    found = validation.result()
    assert found["loss_t000_250"] == 1.0  # the 2 is a city's
    assert "loss_t750_1000" in found
    validation = ValidationLoss(source_weights={"faces": 1.0, "cities": 0.0})
    validation.add(LOSSES[1:2], TIMESTEPS[1:2], SOURCES[1:2])
    assert validation.result() == {"loss/cities": 2.0}


def test_a_loss_that_is_not_finite_is_reported_as_such():
    validation = ValidationLoss()
    validation.add(torch.tensor([float("nan")]), torch.tensor([10]))
    assert math.isnan(validation.result()["loss"])

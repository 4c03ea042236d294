"""What the guard decides, step by step, from the numbers that ranks agree on."""

from __future__ import annotations

import math

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from stages import clip, fit, image_batch

from sdscratch.errors import ConfigError
from sdscratch.training import Guard
from sdscratch.training.injection import disturb
from sdscratch.training.stage import StepReport

WINDOW = 8


def good(loss: float) -> StepReport:
    return StepReport(losses={"loss": loss}, grad_norm=1.0)


def bad() -> StepReport:
    return StepReport(losses={"loss": math.nan}, bad_ranks=(1,), grad_norm=math.nan)


def after(losses: list[float], **settings) -> Guard:
    guard = Guard(spike_window=WINDOW, **settings)
    assert all(guard.allows(good(loss), step) for step, loss in enumerate(losses))
    return guard


USUAL = [1.0, 1.1, 0.9, 1.0, 1.2, 0.8, 1.0, 1.1]


def test_a_loss_far_above_the_window_is_a_spike_and_one_a_little_above_is_none():
    guard = after(USUAL)
    assert guard.allows(good(1.5), 8) and guard.finding is None and guard.spikes == 0
    assert guard.allows(good(5.0), 9) and guard.finding.reason == "spike" and guard.spikes == 1
    assert guard.allows(good(1.0), 10) and guard.finding is None


def test_a_spike_is_not_taken_where_that_is_wanted_and_is_no_reason_to_go_back():
    guard = after(USUAL, skip_spikes=True, in_a_row=1)
    assert not guard.allows(good(5.0), 8)
    assert guard.bad_since is None and guard.bad_steps == 0


def test_nothing_is_a_spike_before_the_window_is_full():
    guard = after(USUAL[:-1])
    assert guard.allows(good(100.0), 7) and guard.finding is None


def test_a_number_that_is_not_finite_does_not_enter_the_window_and_no_good_step_after_it_is_lost():
    guard = after(USUAL, skip_spikes=True)
    window = list(guard.losses)
    assert not guard.allows(bad(), 8)
    assert guard.losses == window and guard.bad_since == 8 and guard.bad_steps == 1
    assert all(guard.allows(good(loss), 9 + n) and guard.finding is None for n, loss in enumerate(USUAL * 4))
    assert guard.bad_since is None


def test_a_gradient_alone_that_is_not_finite_is_enough():
    guard = after(USUAL)
    assert not guard.allows(StepReport(losses={"loss": 1.0}, grad_norm=math.inf), 8)
    assert guard.finding.reason == "gradient"


def test_a_guard_that_is_restored_decides_as_the_one_that_was_saved():
    saved = after(USUAL)
    saved.allows(bad(), 8)
    restored = Guard(spike_window=WINDOW)
    restored.load_state_dict(saved.state_dict())
    for step, report in enumerate([bad(), good(1.3), good(9.0), good(1.0)], start=9):
        assert restored.allows(report, step) == saved.allows(report, step)
        assert (restored.finding, restored.state_dict()) == (saved.finding, saved.state_dict())


@pytest.mark.parametrize(
    "wrong", [{"in_a_row": 0}, {"rewinds": -1}, {"spike_window": 1}, {"spike_deviations": 0.0}, {"in_a_row": 1.5}]
)
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"callbacks.guard.{next(iter(wrong))}"):
        Guard(**wrong)


@pytest.mark.parametrize("fault", ["foo@1", "nan", "nan@1:x", "nan@-1"])
def test_faults_that_cannot_be_injected_are_refused(monkeypatch, fault):
    monkeypatch.setenv("SDS_INJECT", f"nan@7,{fault}")
    with pytest.raises(ConfigError, match=f"{fault} is no fault"):
        disturb(torch.ones(()), 0, 0)


def test_an_overflow_that_a_smaller_scale_mends_changes_nothing_but_the_scale():
    module = clip()
    before = {name: tensor.clone() for name, tensor in module.network.state_dict().items()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    guard = Guard()
    fit(module, image_batch(), callbacks=[guard], plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaler.get_scale() == 2.0**99
    assert module.ema.num_updates == 0 and guard.bad_steps == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.network.state_dict().items())

"""Numbers that look alike and are not."""

from __future__ import annotations

import pytest

from sdscratch.config import compose, settings
from sdscratch.evaluation.comparison import caveats, same_question


def of(*overrides: str) -> dict:
    return settings(compose("train", ["experiment=tiny", *overrides]))


@pytest.mark.parametrize(
    "overrides",
    [("optimizer.lr=5.0e-4",), ("max_steps=60", "seed=3"), ("caption_dropout=0.3", "model.layers_per_block=2")],
)
def test_runs_of_one_objective_on_the_same_held_out_samples_compare(overrides):
    assert caveats([of(), of(*overrides)]) == []


def test_a_weighted_loss_compares_within_one_gamma_only():
    runs = [of("objective.min_snr_gamma=1"), of("objective.min_snr_gamma=3"), of("objective.min_snr_gamma=1")]
    (caveat,) = caveats(runs)
    assert caveat.startswith("train/loss does not compare") and "(objective.min_snr_gamma: 1, 3)" in caveat


def test_losses_of_networks_that_answer_different_questions_compare_in_no_form():
    found = caveats([of(), of("objective=epsilon", "sampler=ddim")])
    assert any("val/loss does not compare either" in caveat for caveat in found)
    (v,) = caveats([of("objective=epsilon", "sampler=ddim"), of("objective=v_prediction", "sampler=ddim")])
    assert "objective.prediction_type: epsilon, v_prediction" in v


def test_other_held_out_samples_are_said():
    (caveat,) = caveats([of(), of("dataset.val_samples=8")])
    assert "different held-out samples, or shares of them (dataset.val_samples: 16, 8)" in caveat


def test_other_shares_of_sources_are_said_and_other_shares_of_replay_change_no_measure():
    def mixed(*overrides: str) -> dict:
        return settings(compose("train", ["phase=p7_final", *overrides]))

    (caveat,) = caveats([mixed(), mixed("dataset.sources.faces.share=0.2")])
    assert "shares of them (dataset.sources.faces.share: 0.09, 0.2)" in caveat
    faces = [settings(compose("train", ["phase=p4_faces", f"dataset.replay.share={share}"])) for share in (0.1, 0.3)]
    assert caveats(faces) == []


def test_networks_that_predict_different_things_are_not_measured_by_one_anothers_loss():
    epsilon, flow = (settings(compose("train", [f"phase={name}"])) for name in ("p7_final", "p8_flow"))
    gamma = settings(compose("train", ["phase=p7_final", "objective.min_snr_gamma=1"]))
    assert same_question(epsilon, gamma) and not same_question(epsilon, flow)

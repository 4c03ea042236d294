"""Averages of any length after training: in real, tiny runs, killed ones too."""

from __future__ import annotations

import pytest
import torch
from stages import PowerCut, autoencoder, quiet_trainer, watched
from tiny import SMALLER, compose_tiny

from sdscratch.checkpoint_file import checkpoints_in
from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.run_folder import RunFolder
from sdscratch.training.posthoc_ema import PosthocEma, reconstruct, snapshot_folder

TRACKED = (*SMALLER, "callbacks=posthoc_ema", "callbacks.posthoc_ema.every=2", "max_steps=20")


def flat(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([weights[name].flatten().double() for name in sorted(weights)])


def content_of(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in snapshot_folder(run).iterdir()}


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_data) -> RunFolder:
    """20 steps, with 10 snapshots of averages of length 0.05 and 0.10. Look, do not touch."""
    return train(compose_tiny(tmp_path_factory.mktemp("runs"), tiny_data, *TRACKED))


def test_an_average_made_afterwards_is_the_one_tracked_directly(run, tiny_config):
    direct = train(tiny_config(*TRACKED, "callbacks.posthoc_ema.lengths=[0.07]"))
    (state,) = checkpoints_in(snapshot_folder(direct))[-1].load().values()
    expected = flat(state["weights"])
    trained = direct.newest_intact_checkpoint().load()["state_dict"]
    last = flat({name.removeprefix("network."): tensor for name, tensor in trained.items()})
    made = reconstruct(run, 0.07)
    error = (flat(made.weights) - expected).norm()
    assert (made.step, made.snapshots, state["num_updates"]) == (20, 10, 20)
    assert error / expected.norm() < 1e-5  # of the weights themselves
    assert error / (expected - last).norm() < 0.02  # of what averaging has changed
    assert made.distance < 0.01


def test_a_tracked_length_comes_out_as_it_is(run):
    state = checkpoints_in(snapshot_folder(run))[-1].load()["0.1"]["weights"]
    made = reconstruct(run, 0.1)
    assert made.distance < 1e-6
    assert all(torch.allclose(made.weights[name], tensor, atol=1e-6) for name, tensor in state.items())


def test_a_run_that_was_stopped_and_resumed_has_the_same_snapshots_and_averages_to_the_last_bit(run, tiny_config):
    with pytest.raises(PowerCut), watched(cut_after=13):
        train(tiny_config(*TRACKED))
    resumed = train(tiny_config(*TRACKED, "resume_from=auto"))
    assert content_of(resumed) == content_of(run)
    states = [r.newest_intact_checkpoint().load()["callbacks"]["PosthocEma"] for r in (resumed, run)]
    assert torch.equal(*(flat(state["0.05"]["weights"]) for state in states))


def test_snapshots_are_kept_by_their_own_rule(run, capsys):
    assert [snapshot.step for snapshot in checkpoints_in(snapshot_folder(run))] == [*range(2, 21, 2)]
    assert len(run.checkpoints()) == 2
    assert main(["checkpoints", str(run.path), "prune", "keep_last=1", "keep_best=0"]) == 0
    assert len(run.checkpoints()) == 1 and len(content_of(run)) == 20
    capsys.readouterr()


def test_a_snapshot_that_is_damaged_or_cannot_be_written_is_said_and_the_others_do(tiny_config, capsys):
    cfg = tiny_config(*TRACKED, "max_steps=10")
    folder = snapshot_folder(RunFolder(f"{cfg.paths.runs}/tiny"))
    (folder / "step_00000004.ckpt").mkdir(parents=True)
    run = train(cfg)
    assert run.state()["status"] == "done"
    assert "a snapshot of the averages is lost: cannot write" in capsys.readouterr().err
    damaged = folder / "step_00000006.ckpt"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert reconstruct(run, 0.07).snapshots == 3
    assert "step_00000006.ckpt is damaged" in capsys.readouterr().err


def test_averages_cannot_begin_in_the_middle_of_a_run_or_change(tiny_config):
    short = (*SMALLER, "max_steps=2", "callbacks.checkpoints.every=2")
    train(tiny_config(*short))
    longer = ("max_steps=4", "resume_from=auto", "callbacks=posthoc_ema")
    with pytest.raises(ConfigError, match=r"lengths is \[0.05, 0.1\], but the run has tracked none since its start"):
        train(tiny_config(*short, *longer))
    train(tiny_config(*short, "callbacks=posthoc_ema", "name=other"))
    with pytest.raises(ConfigError, match=r"has tracked \[0.05, 0.1\] since its start"):
        train(tiny_config(*short, *longer, "name=other", "callbacks.posthoc_ema.lengths=[0.2]"))


def test_other_stages_and_no_lengths_are_refused():
    with pytest.raises(ConfigError, match="callbacks.posthoc_ema is for stage=diffusion"):
        PosthocEma(every=1).setup(quiet_trainer(), autoencoder(), "fit")
    for lengths in ([], [0.1, 0.1]):
        with pytest.raises(ConfigError, match="expected at least one length, each once"):
            PosthocEma(every=1, lengths=lengths)


# The verb


def test_the_verb_writes_a_model_that_sampling_evaluation_and_export_read(run, tmp_path, capsys):
    assert main(["ema", str(run.path), "length=0.07"]) == 0
    out = run.path / "model_ema_0.07"
    assert capsys.readouterr().out.startswith(f"{out}: step 20, out of 10 snapshots")
    model = load_model_folder(out)
    assert torch.equal(flat(model.unet.state_dict()), flat(reconstruct(run, 0.07).weights))
    assert model.about["posthoc_ema"]["length"] == 0.07 and model.about["weights"] == "ema"
    assert main(["sample", f"model={out}", "prompt=a red circle", f"out={tmp_path}", "num_inference_steps=1"]) == 0
    assert main(["export", str(out), str(tmp_path / "export")]) == 0
    card = (tmp_path / "export" / "README.md").read_text()
    assert "post-hoc average of length 0.07" in card and "### tiny" in card
    assert main(["ema", str(run.path), "length=0.07", "step=10"]) == 0
    assert load_model_folder(run.path / "model_ema_0.07_step_00000010").about["samples_seen"] == 40


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["length=0.5"], "an average of length 0.5: expected a number in [0.0001, 0.28]"),
        (["length=0.07", "step=7"], "has no snapshot of step 7, only of 2, 4, 6"),
        (["length=0.07", "step=7.5"], "step is 7.5: expected a whole number"),
        (["length=0.08", "out={run}"], "is there already"),
        ([], "length: required, but not set"),
    ],
)
def test_what_cannot_be_made_is_refused(run, capsys, words, said):
    capsys.readouterr()
    assert main(["ema", str(run.path), *(word.format(run=run.path) for word in words)]) == 2
    assert said in capsys.readouterr().err


def test_a_run_without_snapshots_is_said_to_have_none(tiny_run, capsys):
    assert main(["ema", str(tiny_run.path), "length=0.07"]) == 2
    assert "has no snapshot at all. They are written by runs with callbacks=posthoc_ema" in capsys.readouterr().err


def test_a_length_far_from_what_the_snapshots_allow_is_made_with_a_warning(run, tmp_path, capsys):
    assert main(["ema", str(run.path), "length=0.01", f"out={tmp_path / 'out'}"]) == 0
    assert "snapshots do not make an average of length 0.01: its profile is" in capsys.readouterr().err

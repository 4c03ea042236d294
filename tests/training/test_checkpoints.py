"""What training writes: everything a run needs to go on, and nothing that it does not train."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import lightning as L
import pytest
import torch
from safetensors.torch import load_file
from stages import autoencoder, clip, fit, image_batch
from tiny import BARE, files_of_at_most

from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder
from sdscratch.training import Checkpoints, Metrics, Plots, Previews, ProgressBar, Validation


@pytest.fixture(scope="module")
def content(tiny_run: RunFolder) -> dict[str, Any]:
    return tiny_run.newest_intact_checkpoint().load()


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in [*value.keys(), *value.values()] for leaf in leaves(item)]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


def test_a_run_leaves_its_newest_checkpoints_named_by_step(tiny_run):
    names = sorted(path.name for path in tiny_run.checkpoint_folder.iterdir())
    expected = [f"step_{step:08d}.ckpt" for step in (20, 30)]
    assert names == sorted([*expected, *(f"{name}.json" for name in expected)])
    assert [(c.step, c.samples_seen) for c in tiny_run.checkpoints()] == [(20, 80), (30, 120)]
    assert all(checkpoint.is_intact() for checkpoint in tiny_run.checkpoints())


def test_a_checkpoint_holds_tensors_and_plain_values_only(content):
    kinds = {type(leaf) for leaf in leaves(content)}
    assert kinds <= {torch.Tensor, str, int, float, bool, type(None)}


def test_a_checkpoint_holds_the_trained_network_twice_its_optimizer_and_where_it_is(content):
    raw = {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}
    assert raw.keys() == content["ema"]["weights"].keys()
    assert not any(torch.equal(raw[name], average) for name, average in content["ema"]["weights"].items())
    assert content["ema"]["num_updates"] == content["global_step"] == 30
    assert content["samples_seen"] == 120
    assert len(content["optimizer_states"][0]["state"]) == len(raw)


def test_nothing_of_the_frozen_encoders_is_in_a_checkpoint(content, tiny_run):
    network = sum(tensor.numel() for tensor in content["state_dict"].values())
    numbers = sum(leaf.numel() for leaf in leaves(content) if isinstance(leaf, torch.Tensor))
    assert numbers < 4 * network + 1000  # weights, average, two moments; counters
    file = tiny_run.newest_intact_checkpoint().path.read_bytes()
    for part in ("vae/diffusion_pytorch_model", "text_encoder/model"):
        weights = load_file(tiny_run.model_folder / f"{part}.safetensors")
        largest = max(weights.values(), key=torch.Tensor.numel)
        assert largest.numpy().tobytes()[:256] not in file


def test_the_model_folder_holds_the_average_of_the_last_step(content, tiny_run):
    saved = load_file(tiny_run.model_folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert saved.keys() == content["ema"]["weights"].keys()
    assert all(torch.equal(tensor, content["ema"]["weights"][name]) for name, tensor in saved.items())


def test_state_says_how_far_the_run_is(tiny_run):
    state = tiny_run.state()
    assert (state["status"], state["stage"], state["step"], state["samples_seen"]) == (
        "done",
        "LatentDiffusion",
        30,
        120,
    )


@pytest.mark.parametrize("kind", [Checkpoints, Metrics, Plots, Previews, ProgressBar, Validation])
def test_a_callback_that_would_never_act_is_refused(kind):
    with pytest.raises(ConfigError, match=f"`every` of the callback {kind.__name__} is 0"):
        kind(every=0)


def test_keeping_no_checkpoint_at_all_is_refused():
    with pytest.raises(ConfigError, match="keep_last is 0"):
        Checkpoints(every=10, keep_last=0)


def test_rows_of_metrics_wait_for_room_on_the_disk(tmp_path, capsys):
    class MakeRoom(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
            if trainer.global_step == 3:
                limit.close()

    with ExitStack() as limit:
        limit.enter_context(files_of_at_most(100))
        callbacks = [Metrics(every=1), MakeRoom()]
        fit(autoencoder(), image_batch(), callbacks=callbacks, max_steps=5, default_root_dir=tmp_path)
    assert capsys.readouterr().err.count("warning: metrics.csv waits: cannot write") == 3
    assert [row["step"] for row in RunFolder(tmp_path).read_metrics()] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("module", "measures", "loss"),
    [
        (autoencoder, {"val/reconstruction": 0.25, "val/psnr": 20.0}, 0.25),
        (clip, {"val/r_at_1": 0.75, "val/r_at_1_chance": 0.1}, 0.25),
    ],
)
def test_every_stage_has_a_number_that_its_best_checkpoint_is_chosen_by(module, measures, loss):
    assert module().validation_loss(measures) == loss


def test_side_cars_tell_the_validation_loss_of_their_own_step_only(tiny_run, tiny_config):
    known = {row["step"]: row.get("val/loss") for row in tiny_run.read_metrics()}
    assert [c.val_loss for c in tiny_run.checkpoints()] == [known[c.step] for c in tiny_run.checkpoints()]
    run = train(tiny_config(*BARE, "max_steps=4", "callbacks.validation.every=4", "callbacks.checkpoints.every=2"))
    assert [(c.step, c.val_loss is None) for c in run.checkpoints()] == [(2, True), (4, False)]

"""A checkpoint as a model: the networks of its step, with what the run around it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from sdscratch.checkpoint_file import write_checkpoint
from sdscratch.errors import DataError, RunFolderError
from sdscratch.interop.model_source import load_model, raw_weights
from sdscratch.interop.run_checkpoint import run_around
from sdscratch.run_folder import RunFolder


@pytest.fixture
def unfinished(tiny_run: RunFolder, tmp_path: Path) -> RunFolder:
    """The tiny run before its end, with encoders that were read from a model folder."""
    run = RunFolder(tmp_path / "unfinished")
    shutil.copytree(tiny_run.checkpoint_folder, run.checkpoint_folder)
    recipe = yaml.safe_load(tiny_run.config_file.read_text())
    recipe["vae"] = {"_target_": "sdscratch.models.load_vae", "path": str(tiny_run.model_folder)}
    recipe["text_encoder"] = {
        "_target_": "sdscratch.models.load_text_encoder",
        "_partial_": True,
        "path": str(tiny_run.model_folder),
    }
    run.config_file.write_text(yaml.safe_dump(recipe))
    return run


def same(a: torch.nn.Module, b: torch.nn.Module | dict) -> bool:
    expected = b if isinstance(b, dict) else b.state_dict()
    return all(torch.equal(tensor, expected[name]) for name, tensor in a.state_dict().items())


def test_a_checkpoint_is_the_networks_of_its_own_step(tiny_run):
    older, newest = (checkpoint.path for checkpoint in tiny_run.checkpoints()[-2:])
    content = torch.load(older, weights_only=True)
    model = load_model(older)
    assert same(model.unet, content["ema"]["weights"]) and not same(model.unet, load_model(newest).unet)
    raw = {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}
    assert same(raw_weights(older, model.unet), raw)
    assert (model.about["step"], model.about["weights"]) == (content["global_step"], "ema")


def test_the_last_checkpoint_is_the_finished_model(tiny_run):
    finished, last = load_model(tiny_run.path), load_model(tiny_run.checkpoints()[-1].path)
    assert same(last.unet, finished.unet) and same(last.encoders.vae, finished.encoders.vae)
    assert last.about["sampling"] == finished.about["sampling"]


def test_before_the_end_of_its_run_it_is_put_together_by_the_configuration(tiny_run, unfinished):
    finished, model = load_model(tiny_run.path), load_model(unfinished.checkpoints()[-1].path)
    assert same(model.unet, finished.unet) and not model.unet.training
    assert model.encoders.text.fingerprint == finished.encoders.text.fingerprint
    assert (model.noise_schedule, model.prediction_type) == (finished.noise_schedule, finished.prediction_type)
    assert model.about["sampling"] == finished.about["sampling"]


def test_encoders_that_are_not_those_of_training_are_refused(tiny_run, unfinished):
    recipe = yaml.safe_load(unfinished.config_file.read_text())
    other = load_model(tiny_run.path).encoders.vae
    torch.nn.init.zeros_(other.decoder.conv_out.bias)
    other.decoder.conv_out.bias.data += 1
    other.save_pretrained(unfinished.path / "other" / "vae")
    recipe["vae"]["path"] = str(unfinished.path / "other")
    unfinished.config_file.write_text(yaml.safe_dump(recipe))
    with pytest.raises(DataError, match="other is not the vae that .* was trained with: its fingerprint is"):
        load_model(unfinished.checkpoints()[-1].path)


def test_random_encoders_are_in_no_file_before_the_end(tiny_run, unfinished):
    shutil.copy(tiny_run.config_file, unfinished.config_file)
    with pytest.raises(DataError, match="the vae of .* has random weights.*`sdscratch resume"):
        load_model(unfinished.checkpoints()[-1].path)


def test_a_damaged_checkpoint_is_refused(unfinished):
    path = unfinished.checkpoints()[-1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    for load in (load_model, lambda path: raw_weights(path, None)):
        with pytest.raises(DataError, match=f"{path} is damaged"):
            load(path)


def test_one_without_its_side_car_is_refused(unfinished):
    checkpoint = unfinished.checkpoints()[-1]
    checkpoint.sidecar.unlink()
    with pytest.raises(DataError, match="lacks the side-car"):
        load_model(checkpoint.path)


def test_of_one_that_is_not_there_the_others_are_named(unfinished):
    steps = ", ".join(str(checkpoint.step) for checkpoint in unfinished.checkpoints())
    with pytest.raises(DataError, match=f"there is no checkpoint .*; .* has those of steps: {steps}"):
        load_model(unfinished.checkpoint_path(7))


def test_one_that_its_run_removes_while_it_is_read_is_gone_not_damaged(unfinished):
    checkpoint = unfinished.checkpoints()[-1]
    checkpoint.path.unlink()
    with pytest.raises(DataError, match="there is no checkpoint"):
        load_model(checkpoint.path)
    with pytest.raises(RunFolderError, match="is gone: its run has gone on"):
        checkpoint.load()


def test_a_checkpoint_of_another_stage_is_refused(unfinished):
    path = unfinished.checkpoint_path(5)
    write_checkpoint(path, {"settings": {"stage._target_": "sdscratch.training.Autoencoder"}}, 5, 5)
    with pytest.raises(DataError, match="is a checkpoint of stage Autoencoder: expected one of stage=diffusion"):
        load_model(path)


@pytest.mark.parametrize("content", [{}, {"ema": 3}, {"ema": {"weights": {"a": 1}}}, {"settings": 3}, [1]], ids=str)
def test_one_with_something_else_in_it_is_refused_in_one_line(tiny_run, unfinished, content):
    path = unfinished.checkpoint_path(5)
    write_checkpoint(path, content, 5, 5)
    with pytest.raises(DataError, match=str(path)) as refusal:
        load_model(path)
    assert "\n" not in str(refusal.value)


def test_a_configuration_that_cannot_be_read_is_refused_in_one_line(unfinished):
    for text in ("{", "[]", "model: {_target_: os.system, command: ls}"):
        unfinished.config_file.write_text(text)
        with pytest.raises(DataError, match="config.yaml cannot be read") as refusal:
            load_model(unfinished.checkpoints()[-1].path)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("path", ["step_00000001.ckpt", "runs/a/checkpoints/model.ckpt", "runs/a/step_00000001.ckpt"])
def test_what_is_named_otherwise_is_no_checkpoint_of_a_run(path):
    assert run_around(Path(path)) is None

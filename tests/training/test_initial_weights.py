"""`init_from`: a new run takes its first weights from where they are, all of them or none."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256

import pytest
import torch
from stages import autoencoder, clip, latent_diffusion
from tiny import BARE, SMALLER

from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.errors import ConfigError, DataError, RunFolderError
from sdscratch.run_folder import RunFolder
from sdscratch.training import Stage
from sdscratch.training.initial_weights import InitialWeights


@pytest.fixture
def module(tiny_config) -> Stage:
    """A tiny stage with random weights of its own."""
    module = latent_diffusion(tiny_config())[0]
    with torch.no_grad():
        for parameter in module.network.parameters():
            parameter.add_(1.0)
    module.settings = {"optimizer._target_": "torch.optim.AdamW"}
    return module


def assert_holds(network: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    state = network.state_dict()
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in state)


@pytest.fixture(scope="module")
def content(tiny_run):
    return tiny_run.newest_intact_checkpoint().load()


def raw(content) -> dict[str, torch.Tensor]:
    return {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}


def test_the_average_of_a_run_becomes_the_weights_and_the_average_of_the_next(module, tiny_run, content):
    said = InitialWeights().give(module, str(tiny_run.path))
    assert_holds(module.network, content["ema"]["weights"])
    assert_holds(module.ema.network, content["ema"]["weights"])
    assert module.ema.num_updates == 0 and module.configure_optimizers().state_dict()["state"] == {}
    assert said == {
        "from": str(tiny_run.path),
        "step": 30,
        "samples_seen": 120,
        "sha256": sha256(tiny_run.checkpoint_path(30).read_bytes()).hexdigest(),
        "weights": "ema",
        "optimizer": "reset",
        "ema": "reset",
    }


def test_everything_can_be_taken_along(module, tiny_run, content):
    InitialWeights(weights="raw", optimizer="keep", ema="keep").give(module, str(tiny_run.path))
    assert_holds(module.network, raw(content))
    assert_holds(module.ema.network, content["ema"]["weights"])
    assert module.ema.num_updates == 30
    state = module.configure_optimizers().state_dict()
    saved = content["optimizer_states"][0]["state"]
    assert state["state"].keys() == saved.keys()
    assert all(torch.equal(state["state"][i][name], saved[i][name]) for i in saved for name in saved[i])
    assert {group["lr"] for group in state["param_groups"]} == {1e-3}  # the configured one


def test_the_raw_weights_with_a_new_average(module, tiny_run, content):
    InitialWeights(weights="raw").give(module, str(tiny_run.path))
    assert_holds(module.network, raw(content))
    assert_holds(module.ema.network, raw(content))


def test_a_checkpoint_can_be_named(module, tiny_run):
    said = InitialWeights().give(module, str(tiny_run.checkpoint_path(20)))
    assert said["step"] == 20
    assert_holds(module.network, tiny_run.checkpoints()[-2].load()["ema"]["weights"])


@pytest.mark.parametrize("part", ["", "model"])
def test_a_model_folder_gives_its_weights(module, tiny_run, content, tmp_path, part):
    shutil.copytree(tiny_run.model_folder, tmp_path / "model")
    source = str(tmp_path / part)
    said = InitialWeights().give(module, source)
    assert_holds(module.network, content["ema"]["weights"])
    file = tmp_path / "model/unet/diffusion_pytorch_model.safetensors"
    assert said["sha256"] == sha256(file.read_bytes()).hexdigest()
    assert (said["from"], said["step"], said["samples_seen"]) == (source, 30, 120)


@pytest.mark.parametrize("make", [autoencoder, clip])
def test_the_other_stages_start_from_model_folders_of_their_kind(make, tmp_path):
    source, module = make(), make()
    with torch.no_grad():
        for parameter in source.network.parameters():
            parameter.add_(1.0)
    part = {"vae": source.network, "clip": source.network}[module.component]
    part.save_pretrained(tmp_path / module.component)
    InitialWeights().give(module, str(tmp_path))
    assert_holds(module.network, source.network.state_dict())
    assert_holds(module.ema.network, source.network.state_dict())


# Refused


def test_another_network_is_refused_with_the_tensors_that_differ(tiny_config, tiny_run):
    wider = latent_diffusion(tiny_config("model.block_out_channels=[64, 64]", "model.layers_per_block=2"))[0]
    before = {name: tensor.clone() for name, tensor in wider.network.state_dict().items()}
    with pytest.raises(ConfigError) as refusal:
        InitialWeights().give(wider, str(tiny_run.path))
    lines = str(refusal.value).splitlines()
    assert "another network than the one configured" in lines[0]
    assert " missing: " in lines[1] and "down_blocks.0.resnets.1." in lines[1]
    assert (
        lines[-1]
        .strip()
        .partition(" ")[2]
        .startswith("of another shape: conv_in.weight is (32, 4, 3, 3), expected (64,")
    )
    assert_holds(wider.network, before)


def test_weights_that_nothing_asked_for_are_refused_too(module, tiny_config, tmp_path):
    train(tiny_config(*SMALLER, "max_steps=1", "model.layers_per_block=2"))
    with pytest.raises(ConfigError, match=r"\d+ unexpected: "):
        InitialWeights().give(module, str(tmp_path / "runs" / "tiny"))


def test_samples_are_counted_on_or_from_nothing(tiny_config, module, tiny_run):
    InitialWeights().give(module, str(tiny_run.path))
    assert module.samples_seen(1) == 4
    again = latent_diffusion(tiny_config())[0]
    InitialWeights(samples_seen="keep").give(again, str(tiny_run.path))
    assert again.samples_seen(1) == 120 + 4


@pytest.mark.parametrize("wish", [{"weights": "raw"}, {"optimizer": "keep"}, {"ema": "keep"}, {"samples_seen": "keep"}])
def test_a_model_folder_has_nothing_but_its_average(module, tiny_run, wish):
    with pytest.raises(ConfigError, match="a model folder, with ema weights and nothing else"):
        InitialWeights(**wish).give(module, str(tiny_run.model_folder))


@pytest.mark.parametrize("wish", [{"weights": "averaged"}, {"optimizer": "both"}, {"ema": True}, {"samples_seen": 1}])
def test_wishes_that_are_unknown_are_refused(wish):
    with pytest.raises(ConfigError, match=f"init.{next(iter(wish))}=.* is unknown; expected"):
        InitialWeights(**wish)


def test_moments_of_another_optimizer_are_refused(module, tiny_run):
    module.settings = {"optimizer._target_": "torch.optim.SGD"}
    with pytest.raises(ConfigError, match="torch.optim.AdamW, not torch.optim.SGD: set init.optimizer=reset"):
        InitialWeights(optimizer="keep").give(module, str(tiny_run.path))


def test_a_damaged_source_is_not_believed(module, tiny_run, tmp_path, capsys):
    run = RunFolder(shutil.copytree(tiny_run.path, tmp_path / "copy"))
    run.checkpoint_path(30).write_bytes(b"damaged")
    with pytest.raises(RunFolderError, match="step_00000030.ckpt is damaged, or lacks"):
        InitialWeights().give(module, str(run.checkpoint_path(30)))
    assert InitialWeights().give(module, str(run.path))["step"] == 20
    assert "is damaged" in capsys.readouterr().err
    for checkpoint in run.checkpoints():
        checkpoint.path.write_bytes(b"damaged")
    with pytest.raises(RunFolderError, match="no intact checkpoint"):
        InitialWeights().give(module, str(run.path))
    weights = run.model_folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="is damaged"):
        InitialWeights().give(module, str(run.model_folder))


def test_a_checkpoint_that_is_not_there_is_not_called_damaged(module, tiny_run):
    with pytest.raises(RunFolderError, match="step_00000099.ckpt: there is no such file"):
        InitialWeights().give(module, str(tiny_run.checkpoint_path(99)))


def test_a_source_without_the_part_that_is_trained_is_refused(module, tmp_path):
    with pytest.raises(DataError, match="there is no model"):
        InitialWeights().give(module, str(tmp_path / "nowhere"))
    (tmp_path / "vae").mkdir()
    with pytest.raises(DataError, match="is no whole model"):
        InitialWeights().give(module, str(tmp_path))


# In a run


def test_a_run_says_where_its_weights_came_from_and_counts_its_own_steps(tiny_config, tiny_run, capsys):
    run = train(tiny_config(*BARE, "name=second", f"init_from={tiny_run.path}", "max_steps=2"))
    assert f"from the start, with the ema weights of {tiny_run.path}" in capsys.readouterr().out
    lineage = json.loads((run.path / "lineage.json").read_text())
    assert lineage["changes"] == []
    assert (lineage["init_from"]["from"], lineage["init_from"]["step"]) == (str(tiny_run.path), 30)
    assert (run.state()["step"], run.state()["samples_seen"]) == (2, 8)
    assert run.read_metrics()[0]["train/loss"] < 0.9 * tiny_run.read_metrics()[0]["train/loss"]
    resumed = train(tiny_config(*BARE, "name=second", f"init_from={tiny_run.path}", "max_steps=3", "resume_from=auto"))
    assert resumed.lineage()["init_from"] == lineage["init_from"]
    assert [
        (change["step"], change["key"], change["old"], change["new"]) for change in resumed.lineage()["changes"]
    ] == [(2, "max_steps", 2, 3)]


def test_beginning_a_run_and_going_on_with_one_exclude_each_other(tmp_path, tiny_run, capsys):
    words = ["train", "experiment=tiny", f"paths.runs={tmp_path}", f"init_from={tiny_run.path}", "resume_from=auto"]
    assert main(words) == 2
    assert "exclude each other" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_run_that_goes_on_takes_no_other_weights(tiny_run, capsys):
    assert main(["resume", str(tiny_run.path), "init_from=runs/other"]) == 2
    assert "the run has its weights already" in capsys.readouterr().err

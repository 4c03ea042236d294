"""From configuration to objects."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from sdscratch.config import build, build_named, compose
from sdscratch.diffusion import DiffusionObjective, LogitNormal, NoiseSchedule, Uniform
from sdscratch.errors import ConfigError


def test_objects_get_plain_lists_and_dicts():
    built = build(OmegaConf.create({"_target_": "sdscratch.diffusion.LogitNormal", "mean": [1, {"a": [2]}]}))
    assert type(built.mean) is list and type(built.mean[1]) is dict and type(built.mean[1]["a"]) is list


@pytest.mark.parametrize("partial", [True, False])
def test_what_the_code_adds_reaches_the_object_untouched(partial):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5}]
    node = OmegaConf.create({"_target_": "torch.optim.AdamW", "_partial_": partial, "lr": 0.1})
    optimizer = build(node, params=groups)
    assert optimizer.param_groups[0]["params"][0] is groups[0]["params"][0] and optimizer.param_groups[0]["lr"] == 0.5


def test_nested_objects_are_built_from_the_inside(conf):
    objective = build(compose("train").objective)
    assert isinstance(objective, DiffusionObjective) and isinstance(objective.noise_schedule, NoiseSchedule)


def test_named_objects_keep_their_names_and_order_and_null_switches_one_off(conf):
    assert build(None) is None and build_named(None) == {}
    built = build_named(compose("train").callbacks)
    assert list(built) == ["one", "two"] and isinstance(built["one"], Uniform) and isinstance(built["two"], LogitNormal)
    assert list(build_named(compose("train", ["callbacks.one=null"]).callbacks)) == ["two"]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("objective.min_snr_gamma=-1.0", "min_snr_gamma is -1.0"),  # our own error passes as it is
        ("objective.noise_schedule.num_train_timesteps=-5", "num_train_timesteps"),
    ],
)
def test_values_that_the_code_refuses_are_configuration_errors(conf, override, said):
    with pytest.raises(ConfigError, match=said):
        build(compose("train", [override]).objective)


def test_a_foreign_refusal_names_the_key_and_the_target():
    cfg = OmegaConf.create({"opt": {"_target_": "torch.optim.AdamW", "lr": -1.0}})
    with pytest.raises(ConfigError, match="torch.optim.AdamW cannot be built: ValueError: Invalid learning rate: -1.0"):
        build(cfg.opt, params=[torch.nn.Parameter(torch.zeros(1))])
    with pytest.raises(ConfigError, match="opt: torch.optim.AdamW cannot be built: TypeError"):
        build(cfg.opt)


@pytest.mark.parametrize("node", [3, "text", OmegaConf.create({"lr": 0.1}), OmegaConf.create([1])])
def test_only_sections_with_a_target_are_built(node):
    with pytest.raises(ConfigError, match="_target_"):
        build(node)

"""Finding conf/ and composing from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_conf import add, complaint

import sdscratch
from sdscratch.config import compose, config_dir, config_groups
from sdscratch.errors import ConfigError


@pytest.mark.parametrize("place", ["sdscratch/conf", "conf"])
def test_conf_is_found_inside_the_package_and_beside_it(place, tmp_path, monkeypatch):
    (tmp_path / "sdscratch").mkdir()
    (tmp_path / place).mkdir()
    monkeypatch.setattr(sdscratch, "__file__", str(tmp_path / "sdscratch/__init__.py"))
    assert config_dir() == tmp_path / place


def test_a_package_without_conf_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sdscratch, "__file__", str(tmp_path / "sdscratch/__init__.py"))
    with pytest.raises(ConfigError, match="install"):
        config_dir()


def test_the_shipped_conf_does_not_depend_on_the_working_directory(tmp_path, monkeypatch):
    here = config_dir()
    monkeypatch.chdir(tmp_path)
    assert config_dir() == here and here.is_absolute()


def test_what_is_closer_to_the_user_wins(conf):
    assert compose("train").seed == 0
    assert compose("train", ["phase=late"]).seed == 5
    assert compose("train", ["experiment=seven", "phase=late"]).seed == 7
    assert compose("train", ["experiment=seven", "seed=9"]).seed == 9


def test_a_key_of_the_verb_itself_is_no_group_though_there_is_one_of_that_name(conf):
    add(conf, "sample.yaml", "optimizer: ???\nobjective: null\n")
    cfg = compose("sample", ["optimizer=runs/x", "objective=4"])
    assert (cfg.optimizer, cfg.objective) == ("runs/x", 4) and config_groups("sample") == {}
    assert compose("train", ["optimizer=sgd"]).optimizer._target_ == "torch.optim.SGD"


def test_composing_changes_no_directory_and_writes_nothing(conf, tmp_path_factory, monkeypatch):
    empty = tmp_path_factory.mktemp("empty")
    monkeypatch.chdir(empty)
    compose("train")
    assert Path.cwd() == empty and not list(empty.iterdir())


def test_composing_works_inside_a_hydra_application(conf):
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(conf), version_base="1.3"):
        outer = GlobalHydra.instance().hydra
        assert compose("train", ["seed=3"]).seed == 3
        with pytest.raises(ConfigError):
            compose("train", ["sed=3"])
        assert GlobalHydra.instance().hydra is outer


def test_the_groups_of_a_verb_list_their_options(conf):
    groups = config_groups("train", ["phase=late"])
    assert groups["optimizer"] == ("sgd", ["adamw", "sgd"])
    assert groups["experiment"] == (None, ["seven"])
    assert not any(name.startswith("hydra") for name in groups)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("max_step=3", "did you mean 'max_steps'"),
        ("lr=3", "did you mean 'optimizer.lr'"),
        ("optimizer.lrr=3", "did you mean 'optimizer.lr'"),
        ("optmizer=sgd", "did you mean 'optimizer'"),
        ("optmizer.lr=3", "there is no key 'optmizer.lr'; did you mean 'optimizer.lr'?"),
        ("optmizer.fused=true", "there is no key 'optmizer.fused': nothing reads this key; did you mean 'optimizer'?"),
        ("optimizer=adamv", "did you mean 'adamw'"),
        ("experiment=sevn", "experiment has no option 'sevn'; did you mean 'seven'?"),
        ("callbacks=null", "default, none"),
        ("~callbacks.on", "did you mean 'callbacks.one'"),
        ("optimizer.lr=1,2", "-m"),
        ("optimizer.lr=choice(1,2)", "-m"),
        ("max_steps", "write key=value, as in max_steps=..."),
        ("seven", "write key=value, as in experiment=seven"),
        (
            "optimizer.fussed=true",
            "there is no key 'optimizer.fussed': torch.optim.AdamW takes no such argument; did you",
        ),
        ("optimizer.fused=true", "the code takes one: add it by +optimizer.fused=true"),
        ("nonsense=1", "there is no key 'nonsense': nothing reads this key"),
        ("name=a=b", "cannot read 'name=a=b'"),
        ("name=a (4k)", "cannot read 'name=a (4k)'"),
        ("name=${", "cannot read"),
        ("name=${nam}", "name: Interpolation key 'nam' not found"),
        ("name=${name}", "name: Recursive"),
        ("name=${oc.env:NO_SUCH_VARIABLE}", "NO_SUCH_VARIABLE"),
        ("objective.noise_schedule=${objective}", "objective.noise_schedule"),
        ("hydra.searchpath=3", "hydra.searchpath"),
        ("phase=nowhere/late", "phase/nowhere"),
    ],
)
def test_a_wrong_override_is_refused_with_advice(conf, override, said):
    assert said in complaint(override)


def test_the_override_that_is_wrong_is_the_one_that_is_named(conf):
    assert complaint("experiment=seven", "callbacks=null").startswith("callbacks: a config group takes")


def test_a_key_that_only_other_options_have_is_not_suggested_as_its_own_correction(conf):
    said = complaint("objective.noise_schedule.kind=linear", "objective=plain")
    assert "did you mean" not in said and "with the options chosen there is no 'objective.noise_schedule.kind'" in said
    shutil.rmtree(conf / "phase")
    assert "there are no options for 'phase' yet" in complaint("phase=late")


def test_what_lacks_its_equals_sign_is_shown_with_it(conf):
    assert complaint("optimizer", "sgd").endswith("cannot read 'optimizer': write key=value, as in optimizer=sgd")


def test_nothing_is_advised_for_adding_what_was_to_be_removed(conf):
    assert complaint("~nonsense") == "there is no key 'nonsense'"


def test_of_several_unknown_keys_the_first_is_explained(conf):
    assert complaint("nonsense=1", "optimizer.fused=true", "experiment=seven").startswith(
        "there is no key 'nonsense': "
    )


def test_an_unknown_verb_config_is_refused(conf):
    with pytest.raises(ConfigError, match="trian"):
        compose("trian")


def test_damaged_yaml_is_named_with_its_line(conf):
    add(conf, "experiment/broken.yaml", "# @package _global_\nseed: [1\n")
    assert "experiment/broken.yaml, line 3" in complaint("experiment=broken")


def test_a_wrong_group_in_an_experiment_names_the_experiment(conf):
    add(conf, "experiment/wrong.yaml", "# @package _global_\ndefaults: [{override /optimzer: sgd}]\n")
    assert "In 'experiment/wrong'" in (text := complaint("experiment=wrong")) and "did you mean 'optimizer'" in text

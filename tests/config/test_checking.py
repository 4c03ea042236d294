"""Mistakes are found before anything is built, and told all at once."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Literal

import pytest
import torch
from omegaconf import OmegaConf
from small_conf import FILES, add, complaint

from sdscratch.config import check_config, compose
from sdscratch.config.signatures import fits
from sdscratch.errors import ConfigError


def test_the_small_conf_fits_the_code(conf):
    check_config(compose("train"))
    check_config(compose("train", ["phase=late", "callbacks=none", "callbacks={}"][:2]))


@pytest.mark.parametrize("text", ["a\ud800b", "\udcff", "a\0b"], ids=ascii)
def test_text_that_no_file_takes_is_refused_by_its_key(text):
    with pytest.raises(ConfigError, match=r"a\.b\[1\]: holds a NUL or half a character"):
        check_config(OmegaConf.create({"a": {"b": ["fine", text]}}))


def test_every_mistake_of_an_experiment_is_told_at_once(conf):
    add(
        conf,
        "experiment/typos.yaml",
        """
        # @package _global_
        max_stepz: 3
        seed: 1.5
        name: 12
        validation: {evry: 3, prompts: 3, anything: {goes: 1}}
        callbacks: {three: {_target_: sdscratch.diffusion.Uniform}, four: {_target_: sdscratch.diffusion.Unifrom}}
        optimizer: {momentum: 0.1, lr: "1e-4"}
        objective: {prediction_type: v_predictoin, noise_schedule: {num_train_timesteps: 1000.0}}
        paths: 5
        """,
    )
    said = complaint("experiment=typos")
    for line in (
        "max_stepz: nothing reads this key; did you mean 'max_steps'?",
        "seed: expected int, found 1.5",
        "name: expected str, found 12; in quotes it is a string",
        "validation.evry: nothing reads this key; did you mean 'validation.every'?",
        "validation.prompts: expected a list, found 3",
        "callbacks.four._target_: there is no 'sdscratch.diffusion.Unifrom'; did you mean 'Uniform'?",
        "optimizer.momentum: torch.optim.AdamW takes no such argument",
        "optimizer.lr: torch.optim.AdamW takes",
        "write numbers without quotes and with a point, as in 1.0e-4",
        "objective.prediction_type: ",
        "did you mean 'v_prediction'?",
        "objective.noise_schedule.num_train_timesteps: ",
        "found 1000.0; write 1000",
        "paths: expected a section, found 5",
    ):
        assert line in said
    assert "anything" not in said and "three" not in said


def test_the_command_line_cannot_add_what_nothing_reads(conf):
    assert "momentum: nothing reads this key" in complaint("+momentum=0.9")
    assert "takes no such argument" in complaint("+optimizer.momentum=0.9")
    check_config(compose("train", ["+optimizer.weight_decay=0.01"]))


@pytest.mark.parametrize(
    ("node", "said"),
    [
        ("{_target_: sdscratch.diffusion.NoiseSchedule, kind: '???'}", "x.kind: required, but not set"),
        ("{_target_: sdscratch.models.UNet.from_config}", "x.config: required by sdscratch.models.UNet.from_config"),
        ("{_target_: torch.optim.AdamW, lr: 0.1}", "x.params: required by torch.optim.AdamW"),
        ("{_target_: torch.optim.AdamW, _partial_: maybe}", "x._partial_: expected bool"),
        ("{_target_: torch.optim.AdamW, _partial_: true, _args_: 3}", "x._args_"),
        ("{_target_: torch.optim.AdamW, _partial_: true, _args_: [a, 0.1], lr: 0.1}", "x.lr: given twice"),
        ("{_target_: torch.optim.AdamW, _partial_: true, _args_: [a, b]}", "x.lr: torch.optim.AdamW takes float"),
        ("{_target_: torch.optim.AdamW, _partial_: true, _convert_: none}", "x._convert_"),
        ("{_target_: torch.optim.AdamW, _partial_: true, amsgrad: 1}", "x.amsgrad: torch.optim.AdamW takes bool"),
        ("{_target_: torch.optim.AdamW, _partial_: true, lr: true}", "x.lr"),
        ("[1, {_target_: torch.optim.AdamV}]", "x[1]._target_: there is no 'torch.optim.AdamV'; did you mean 'Adam"),
        ("[1, '???']", "x[1]: required, but not set"),
        ("{_target_: 3}", "x._target_: 3 is not allowed"),
        ("{_target_: sdscratch.nothing.Here}", "there is no 'sdscratch.nothing'"),
        ("{_target_: diffusers.AutoencoderKL, latent_channel: 4}", "did you mean 'latent_channels'"),
        ("{_target_: diffusers.AutoencoderKL, block_out_channels: [32, 64.5]}", "x.block_out_channels"),
    ],
)
def test_an_object_that_the_code_refuses_is_named(node, said):
    with pytest.raises(ConfigError) as caught:
        check_config(OmegaConf.create(f"x: {node}"))
    assert said in str(caught.value)


def test_a_value_that_is_a_copy_is_mended_where_it_was_set():
    optimizer = {"_target_": "torch.optim.AdamW", "_partial_": True, "lr": "${rate}"}
    with pytest.raises(ConfigError) as caught:
        check_config(OmegaConf.create({"rate": "abc", "optimizer": optimizer}))
    assert "\n  rate: optimizer.lr takes " in str(caught.value)


def test_partial_objects_may_leave_out_what_the_code_adds():
    check_config(OmegaConf.create({"x": {"_target_": "torch.optim.AdamW", "_partial_": True, "params": "???"}}))


def test_keywords_that_only_kwargs_would_take_are_compared_with_the_named_ones():
    node = {"_target_": "lightning.pytorch.loggers.WandbLogger", "projct": "a", "group": "b"}
    with pytest.raises(ConfigError, match="x.projct.*did you mean 'project'") as caught:
        check_config(OmegaConf.create({"x": node}))
    assert "group" not in str(caught.value)


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (int, [1, -3], [1.0, True, "1", None, [1]]),
        (float, [1, 1.5], [True, "1e-4", None]),
        (bool, [True], [0, "true"]),
        (str, [""], [1, None, ["a"]]),
        (Path, ["a/b"], [1]),
        (int | None, [1, None], ["1"]),
        (float | torch.Tensor, [1.0], ["1e-4"]),
        (str | torch.device, ["cuda"], [3]),
        (torch.device, ["cuda"], [None]),
        (Literal["a", 1], ["a", 1], ["b", True, 1.0]),
        (list[int], [[], [1, 2]], [[1, "2"], 3, {}]),
        (tuple[int, float], [[1, 2.0]], [[1], [1, "a"]]),
        (tuple[int, ...], [[], [1, 2, 3]], [["a"]]),
        (dict[str, float], [{"a": 1}], [{"a": "b"}, [1]]),
    ],
)
def test_values_fit_annotations_as_python_would_have_them(hint, good, bad):
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


def test_composing_and_checking_take_no_time(conf):
    check_config(compose("train", ["seed=1"]))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        cfg = compose("train", ["seed=1"])
        middle = time.process_time()
        check_config(cfg)
        seconds.append((time.process_time() - start, time.process_time() - middle))
    whole, check = min(seconds)
    assert whole < 0.5 and check < 0.05


def mutated_overrides(draw: random.Random) -> list[str]:
    """An override such as tired fingers write: a key misspelt, removed or added; a value of any kind."""
    key = draw.choice(KEYS)
    if draw.random() < 0.3:
        at = draw.randrange(len(key))
        key = key[:at] + draw.choice(["", "x", ".", key[at] * 2]) + key[at + 1 :]
    prefix = draw.choice(["", "", "", "+", "++", "~"])
    return [f"~{key}" if prefix == "~" else f"{prefix}{key}={draw.choice(VALUES)}"]


def mutated_file(draw: random.Random, conf: Path) -> None:
    """Damage one character of one file."""
    name = draw.choice(sorted(FILES))
    text = (conf / name).read_text()
    at = draw.randrange(len(text))
    (conf / name).write_text(text[:at] + draw.choice(["", "x", ":", " ", "\n", "{", "3", "$", "'"]) + text[at + 1 :])


KEYS = [
    *["name", "max_steps", "seed", "loss_scale", "validation", "validation.every", "paths.runs", "optimizer"],
    *["optimizer.lr", "optimizer.betas", "objective", "objective.prediction_type", "objective.noise_schedule.kind"],
    *["objective.noise_schedule", "callbacks.one", "callbacks", "phase", "experiment"],
]
VALUES = [
    "3",
    "-1",
    "0.5",
    "1e-4",
    "null",
    "true",
    "abc",
    "[1,2]",
    "{a:1}",
    "",
    "'1e-4'",
    "${seed}",
    "${no}",
    "a,b",
    "???",
]


@pytest.mark.parametrize("place", ["command line", "file"])
def test_mutated_configurations_are_valid_or_refused_in_one_screen(conf, place):
    draw, refused = random.Random(0), 0
    for _ in range(25):
        for name, text in FILES.items():
            add(conf, name, text)
        overrides = mutated_overrides(draw) if place == "command line" else ["phase=late", "experiment=seven"]
        if place == "file":
            mutated_file(draw, conf)
        try:
            check_config(compose("train", overrides))
        except ConfigError as error:
            refused += 1
            assert 0 < len(str(error)) < 4000
    assert 5 < refused < 25

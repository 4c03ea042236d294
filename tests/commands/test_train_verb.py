"""`sdscratch train`: what it says at its beginning and end."""

from __future__ import annotations

import shlex

from tiny import BARE, SMALLER

from sdscratch.cli import main
from sdscratch.commands.train import train


def test_a_finished_run_says_how_good_it_is_where_its_model_is_and_how_to_draw_with_it(tmp_path, tiny_data, capsys):
    words = ["experiment=tiny", "name=my run", "threads=1", "max_steps=2", f"paths.data={tiny_data}", *BARE]
    assert main(["train", *words, f"paths.runs={tmp_path}"]) == 0
    done, advice = capsys.readouterr().out.splitlines()[-2:]
    assert done.startswith(f"{tmp_path}/my run: done, 2 steps; val/loss ")
    assert done.endswith(f" (EMA weights). The model: {tmp_path}/my run/model")
    command = shlex.split(advice.removeprefix("pictures: "))
    assert command[:3] == ["sdscratch", "sample", f"model={tmp_path}/my run"]
    assert main([*command[1:], f"out={tmp_path / 'out'}", "num_inference_steps=1"]) == 0
    assert (tmp_path / "out/a_red_circle_in_the_centre_on_a_white_background_0.png").is_file()


def test_a_schedule_that_epsilon_can_hardly_be_sampled_on_is_warned_of(tiny_config, capsys):
    cosine = ("objective=epsilon", "noise_schedule@objective.noise_schedule=cosine", "sampler=ddim", "max_steps=1")
    train(tiny_config(*SMALLER, *cosine))
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "goes from sigma 20,291 (alphas_cumprod 2.4e-09) to" in warning and "Take objective=v_prediction" in warning

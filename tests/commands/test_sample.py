"""`sdscratch sample`: the files that it leaves, and what they say of themselves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdscratch.cli import main
from sdscratch.commands import sample
from sdscratch.models.encoders import FrozenEncoders
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

KINDS = {
    **dict.fromkeys(("num_inference_steps", "seed", "size"), int),
    **dict.fromkeys(("guidance_scale", "guidance_rescale", "eta"), float),
}
Sample = Any  # call it with overrides; gives (exit code, paths of the pictures, stderr)


@pytest.fixture
def draw(tiny_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Sample:
    def draw(*overrides: str) -> tuple[int, list[Path], str]:
        words = [f"model={tiny_run.path}", f"out={tmp_path / 'out'}", "device=cpu", "num_inference_steps=2", *overrides]
        exit_code = main(["sample", *words])
        said = capsys.readouterr()
        return exit_code, [Path(line) for line in said.out.splitlines() if " " not in line], said.err

    return draw


def parameters(path: Path) -> dict[str, str]:
    with Image.open(path) as image:
        return dict(image.text)


def same(a: Image.Image, b: Image.Image) -> bool:
    return np.array_equal(np.asarray(a), np.asarray(b))


def test_one_picture_per_prompt_and_number_each_with_its_own_seed(draw, tmp_path):
    exit_code, paths, errors = draw("prompt=a red circle, (4k)", "num_per_prompt=3", "seed=7", "batch_size=2")
    assert exit_code == 0 and errors == ""
    assert [path.name for path in paths] == [f"a_red_circle_4k_{seed}.png" for seed in (7, 8, 9)]
    assert sorted([*paths, tmp_path / "out/a_red_circle_4k_7-9.png"]) == sorted((tmp_path / "out").iterdir())
    assert [parameters(path)["seed"] for path in paths] == ["7", "8", "9"]
    assert Image.open(paths[0]).size == (32, 32) and Image.open(paths[0]).mode == "RGB"


def test_a_sheet_shows_all_pictures_large_enough_to_see(draw, tmp_path):
    draw("prompt=a", "num_per_prompt=2")
    with Image.open(tmp_path / "out/a_0-1.png") as sheet:
        assert sheet.width > 2 * 128


def test_several_prompts_are_a_list_or_the_lines_of_a_file(draw, tmp_path):
    (tmp_path / "prompts.txt").write_text("a ring\n\nit's blue, \u00e4h\n")
    _, listed, _ = draw('prompt=[a ring, "it\'s blue, \u00e4h"]')
    _, read, _ = draw(f"batch={tmp_path / 'prompts.txt'}")
    assert [parameters(path)["prompt"] for path in listed] == ["a ring", "it's blue, \u00e4h"] and read == listed
    assert [parameters(path)["seed"] for path in listed] == ["0", "1"]


def test_pictures_are_written_as_they_come(draw, tmp_path, monkeypatch):
    decode, calls = FrozenEncoders.decode, []

    def fail_at_the_second_batch(self, latents):
        calls.append(len(latents))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decode(self, latents)

    monkeypatch.setattr(FrozenEncoders, "decode", fail_at_the_second_batch)
    exit_code, paths, _ = draw("prompt=a", "num_per_prompt=3", "batch_size=2")
    assert exit_code == 130 and [path.name for path in paths] == ["a_0.png", "a_1.png"]
    assert sorted((tmp_path / "out").iterdir()) == paths


def test_a_model_by_the_bare_name_of_a_run_is_refused_with_its_path(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SDSCRATCH_RUNS", str(tiny_run.path.parent))
    assert main(["sample", f"model={tiny_run.path.name}", f"out={tmp_path}", "prompt=a"]) == 2
    assert f"did you mean '{tiny_run.path}'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("negative_prompt=blue, \u00fcber alles", "guidance_scale=5.5", "guidance_rescale=0.5", "size=40"),
        ("sampler=ddim", "eta=0.3", "weights=raw", "seed=12"),
    ],
)
def test_what_a_picture_says_of_itself_draws_it_again(draw, overrides):
    prompt = 'a "red" circle,\nna\u00efve \U0001f305 = {4k}'
    _, (path,), _ = draw(f"prompt={prompt}", *overrides)
    text = parameters(path)
    assert text.pop("Software").startswith("sdscratch ") and text["prompt"] == prompt
    pipe = TextToImage.from_pretrained(text.pop("model"), device="cpu")
    settings = {name: KINDS.get(name, str)(value) for name, value in text.items() if name != "prompt"}
    (again,) = pipe([text["prompt"]], **settings)
    assert same(again, Image.open(path))


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("../../etc/passwd", "etc_passwd_0.png"),
        ("/", "picture_0.png"),
        ("C:\\x|y?*<z>", "c_x_y_z_0.png"),
        ("a" * 500, "a" * 120 + "_0.png"),
        ("\u00fc" * 500, "\u00fc" * 60 + "_0.png"),
        ("two\nlines\x00", "two_lines_0.png"),
        ("-rf", "rf_0.png"),
    ],
)
def test_a_prompt_makes_a_safe_file_name(prompt, name):
    assert f"{sample._safe(prompt)}_0.png" == name


def test_no_picture_takes_the_place_of_another(draw, tmp_path):
    draw("prompt=a", "guidance_scale=1")
    _, again, _ = draw("prompt=a", "guidance_scale=1")
    _, other, _ = draw("prompt=a", "guidance_scale=2")
    assert [path.name for path in again + other] == ["a_0.png", "a_0_2.png"]
    assert {path.name: parameters(path)["guidance_scale"] for path in (tmp_path / "out").iterdir()} == {
        "a_0.png": "1",
        "a_0_2.png": "2",
    }


def test_a_sweep_takes_model_and_sampler_as_plain_keys(draw):
    exit_code, paths, _ = draw("-m", "prompt=a, b", "sampler=euler,heun")
    assert exit_code == 0
    assert [(parameters(path)["sampler"], parameters(path)["prompt"]) for path in paths] == [
        ("euler", "a, b"),
        ("heun", "a, b"),
    ]


def test_the_default_model_is_the_quickstarts(tiny_run, tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(tiny_run.path)
    words = [f"paths.runs={tmp_path}/runs", f"out={tmp_path}/out", "prompt=a", "num_inference_steps=2"]
    assert main(["sample", *words]) == 0 and (tmp_path / "out" / "a_0.png").is_file()


def test_guidance_on_a_model_trained_without_caption_dropout_warns_in_one_line(draw, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.model_folder, tmp_path / "model")
    about = json.loads((folder / "sdscratch.json").read_text())
    about["sampling"]["caption_dropout"] = 0.0
    (folder / "sdscratch.json").write_text(json.dumps(about))
    exit_code, paths, errors = draw(f"model={folder}", "prompt=a")
    assert exit_code == 0 and len(paths) == 1 and len(errors.splitlines()) == 1
    assert errors.startswith("warning: guidance_scale=3.0, but this model was trained without caption dropout")
    assert draw(f"model={folder}", "prompt=a", "guidance_scale=1.0")[2] == ""


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompt=", "prompt 1 of 1 is ''"),
        ("prompt=[]", "there is no prompt"),
        ("batch=prompts.txt", "there are prompt and batch"),
        (
            "sampler=eular",
            "'eular' is unknown; expected one of ddim, ddpm, dpmpp_2m, euler, heun. Did you mean 'euler'?",
        ),
        ("num_inference_steps=0", "num_inference_steps is 0"),
        ("guidance_scale=a lot", "guidance_scale is 'a lot': expected a number"),
        ("guidance_scale=nan", "guidance_scale is nan"),
        ("size=30", "size=30 is not divisible by the VAE's factor 4. Set it to 28 or 32."),
        ("num_per_prompt=0", "num_per_prompt is 0"),
        ("seed=-1", "seed is -1"),
        ("weights=mean", "weights='mean' is unknown"),
        ("device=abacus", "device=abacus cannot be used"),
        ("model=runs/nowhere", "there is no model runs/nowhere"),
        ("modle=x", "did you mean 'model'"),
        ("sampler.num_inference_steps=3", "sampler.num_inference_steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, tmp_path, override, said):
    exit_code, paths, errors = draw("prompt=a", override)
    assert (exit_code, paths) == (2, []) and said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_place_that_takes_no_files_is_found_out_first(draw, tmp_path):
    (tmp_path / "file").touch()
    exit_code, _, errors = draw("prompt=a", f"out={tmp_path / 'file'}", "model=runs/nowhere")
    assert exit_code == 4 and errors.startswith(f"sdscratch: cannot write into {tmp_path / 'file'}")

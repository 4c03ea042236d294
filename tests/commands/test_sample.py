"""`sdscratch sample`: the files that it leaves, and what they say of themselves."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import zlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sdscratch.cli import main
from sdscratch.commands import picture_files
from sdscratch.commands.picture_files import PictureFolder, safe_name
from sdscratch.commands.sample_request import SETTINGS
from sdscratch.data.grid import MARGIN
from sdscratch.models.encoders import FrozenEncoders
from sdscratch.run_folder import RunFolder
from sdscratch.sampling_settings import SamplingSettings
from sdscratch.training.curriculum import CurriculumFolder, Entry

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
    (tmp_path / "prompts.txt").write_text("a ring\n\nit's blue, \u00e4h\n", encoding="utf-8-sig")  # as Notepad saves it
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
        ("sampler=ddim", "eta=0.3", "weights=raw", "seed=12", "dtype=bf16"),
        ("guidance_interval=[0.3, 5]", "height=44", "width=28", "init_image=INITIAL", "strength=0.5"),
    ],
)
def test_what_a_picture_says_of_itself_draws_it_again(draw, tmp_path, overrides):
    Image.linear_gradient("L").save(tmp_path / "initial.png")
    overrides = [word.replace("INITIAL", str(tmp_path / "initial.png")) for word in overrides]
    _, (path,), _ = draw('prompt=a "red" circle,\nna\u00efve \U0001f305 = {4k}', *overrides)
    text = parameters(path)
    assert text.pop("Software").startswith("sdscratch ")
    path = path.rename(tmp_path / "first.png")
    _, (again,), _ = draw(*(f"{key}={value}" for key, value in text.items()))
    assert again.read_bytes() == path.read_bytes()


def test_negative_prompts_are_one_for_each_prompt(draw):
    words = ("guidance_scale=6", "num_per_prompt=2", "prompt=[a, b]")
    _, each, _ = draw(*words, 'negative_prompt=[red, "blue, green"]')
    assert [parameters(path)["negative_prompt"] for path in each] == ["red", "red", "blue, green", "blue, green"]
    _, other, _ = draw(*words, "negative_prompt=red")
    assert other[:2] == each[:2] and not same(Image.open(other[2]), Image.open(each[2]))


def test_the_settings_are_those_of_the_pipeline():
    assert {*SETTINGS} == {"size", *(field.name for field in fields(SamplingSettings))}


def test_a_checkpoint_is_a_model(draw, tiny_run):
    older, newest = (checkpoint.path for checkpoint in tiny_run.checkpoints()[-2:])
    (first,), (second,), (third,) = (draw("prompt=a", f"model={model}")[1] for model in (tiny_run.path, newest, older))
    assert same(Image.open(first), Image.open(second)) and not same(Image.open(first), Image.open(third))


# Comparing


def cells(path: Path, rows: int, columns: int) -> list[list[bytes]]:
    """The pictures of a grid, found from its right lower corner."""
    step = 128 + MARGIN
    with Image.open(path) as grid:
        left, top = grid.width - columns * step, grid.height - rows * step
        boxes = [[(left + x * step, top + y * step) for x in range(columns)] for y in range(rows)]
        return [[grid.crop((x, y, x + 128, y + 128)).tobytes() for x, y in row] for row in boxes]


def enlarged(path: Path) -> bytes:
    return Image.open(path).resize((128, 128), Image.Resampling.NEAREST).tobytes()


def test_one_axis_runs_across_and_seeds_run_down(draw):
    words = ("prompt=[a ring, b]", "num_per_prompt=2", "seed=5")
    exit_code, grids, errors = draw(*words, "compare={guidance_scale: [1, 4, 7.5]}")
    assert (exit_code, errors) == (0, "")
    assert [path.name for path in grids] == ["a_ring_by_guidance_scale.png", "b_by_guidance_scale.png"]
    found = cells(grids[0], 2, 3)
    assert len({cell for row in found for cell in row}) == 6
    _, alone, _ = draw("prompt=a ring", "num_per_prompt=2", "seed=5", "guidance_scale=4")
    assert [row[1] for row in found] == [enlarged(path) for path in alone[:2]]
    assert parameters(grids[0])["compare"] == "{'guidance_scale': [1, 4, 7.5]}"


def test_of_two_axes_the_first_runs_down(draw):
    _, (grid,), _ = draw("prompt=a", "compare={num_inference_steps: [1, 3], weights: [ema, raw]}")
    found = cells(grid, 2, 2)
    _, (three_raw,), _ = draw("prompt=a", "num_inference_steps=3", "weights=raw")
    assert found[1][1] == enlarged(three_raw) and len({cell for row in found for cell in row}) == 4


def test_checkpoints_of_a_run_and_phases_of_a_curriculum_are_compared(draw, tiny_run, tmp_path):
    steps = [checkpoint.path for checkpoint in tiny_run.checkpoints()]
    _, (grid,), _ = draw("prompt=a", "compare={model: checkpoints}")
    _, (last,), _ = draw("prompt=a")
    assert cells(grid, 1, len(steps))[0][-1] == enlarged(last)
    phases = {
        "s1": Entry("s1", "done", str(tmp_path / "no_unet")),
        "p1": Entry("p1", "done", str(tiny_run.path)),
        "p2": Entry("p2"),
    }
    CurriculumFolder(tmp_path).write(phases, "")
    exit_code, (grid,), _ = draw("prompt=b", f"model={tmp_path}", "compare={model: phases}")
    assert exit_code == 0 and len(cells(grid, 1, 1)) == 1


@pytest.mark.parametrize(
    ("compare", "said"),
    [
        ("3", "compare=3: expected one axis or two"),
        ("{}", "expected one axis or two"),
        ("{eta: [0], size: [8], seed: [1]}", "expected one axis or two"),
        ("{guidance_scal: [1, 2]}", "compare names 'guidance_scal'; did you mean 'guidance_scale'?"),
        ("{eta: 0}", "expected a list of values"),
        ("{eta: []}", "expected a list of values"),
        ("{weights: [ema, average]}", "weights='average' is unknown"),
        ("{guidance_scale: [1, nan]}", "guidance_scale is nan"),
        ("{model: steps}", "expected a list of models, or checkpoints, or phases"),
        ("{model: phases}", "needs a curriculum with a finished phase"),
        ("{num_inference_steps: [2], model: [MODEL, runs/nowhere]}", "there is no model runs/nowhere"),
        ("{eta: [0, 0.1, 0.2], strength: [0.1, 0.2, 0.3]}", "would draw 9000 pictures: expected at most 2000"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(draw, tiny_run, tmp_path, compare, said):
    words = ("prompt=a", "num_per_prompt=1000", f"compare={compare.replace('MODEL', str(tiny_run.path))}")
    words = words if "9000" in said else (words[0], words[2])
    exit_code, paths, errors = draw(*words)
    assert (exit_code, paths) == (2, []) and said in errors and len(errors.splitlines()) == 1
    assert not list(tmp_path.glob("out/*"))


# Asking


@pytest.fixture
def converse(draw, monkeypatch: pytest.MonkeyPatch) -> Sample:
    """Pictures and stderr of what comes down a pipe."""

    def converse(*lines: bytes) -> tuple[int, list[Path], str]:
        reader, writer = os.pipe()
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(b"\n".join(lines))
        with os.fdopen(reader, "r", encoding="utf-8") as stdin:
            monkeypatch.setattr(sys, "stdin", stdin)
            return draw("interactive=true")

    return converse


def test_prompts_and_settings_come_one_after_the_other(converse, draw):
    lines = (b"a red ring", b"guidance_scale=6", b"again", b"", b"seed=0", b"num_per_prompt=2", b"prompt=a=b")
    exit_code, paths, errors = converse(*lines)
    assert (exit_code, errors) == (0, "")
    assert [path.name for path in paths] == ["a_red_ring_0.png", "a_red_ring_1.png", "a_b_0.png", "a_b_1.png"]
    assert [parameters(path)["guidance_scale"] for path in paths] == ["3.0", "6", "6", "6"]
    assert draw("prompt=a red ring", "seed=1", "guidance_scale=6")[1] == [paths[1]]  # the same bytes


def test_what_cannot_be_done_is_a_line_and_the_next_one_is_heard(converse):
    wrong = {
        b"again": "there is no prompt yet",
        b"size=30": "",  # found out with the next prompt
        b"a circle": "size=30 is not divisible by the VAE's factor 4",
        b"size=": "",
        b"num_inference_steps=0": "num_inference_steps is 0",
        b"guidance_scal=3": "guidance_scal is no setting that can be changed here; did you mean 'guidance_scale'?",
        b"guidance_scale={": "guidance_scale is '{': expected a number",
        b"weights=average": "weights='average' is unknown",
        b"seed=x": "seed is 'x'",
        b"size=2001-01-01": "size is '2001-01-01'",
        b"size=2001-99-99": "size is '2001-99-99'",
        b"size=!!set {a}": "size is '!!set {a}'",
        b"size=" + b"[" * 9000: "size is '[[",
        b"sampler=${x}": "is unknown; expected ddim",
        b"negative_prompt=costs ${5}": "",
        b"init_image=nowhere.png": "",
        b"a square": "init_image=nowhere.png: there is no such file",
        b"init_image=": "",
        b"\xff\xfe": "holds half a character",
        b"x" * 20_000: "goes on for 20000 characters",
    }
    exit_code, paths, errors = converse(*wrong, b"a ring", b"quit", b"never heard")
    assert exit_code == 0 and [path.name for path in paths] == ["a_ring_0.png"]
    assert len(errors.splitlines()) == sum(map(bool, wrong.values()))
    assert all(said in line for said, line in zip(filter(None, wrong.values()), errors.splitlines(), strict=True))


def test_settings_are_shown_by_name(converse):
    _, lines, errors = converse(b"num_inference_steps=7", b"settings")
    assert errors == "" and Path("num_inference_steps=7") in lines and Path("seed=0") in lines


def test_ctrl_c_at_the_prompt_leaves_as_the_end_does(draw, monkeypatch):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    assert draw("interactive=true") == (0, [], "")


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
    assert f"{safe_name(prompt)}_0.png" == name


def test_no_picture_takes_the_place_of_another(draw, tmp_path):
    draw("prompt=a", "guidance_scale=1")
    _, again, _ = draw("prompt=a", "guidance_scale=1")
    _, other, _ = draw("prompt=a", "guidance_scale=2")
    assert [path.name for path in again + other] == ["a_0.png", "a_0_2.png"]
    assert {path.name: parameters(path)["guidance_scale"] for path in (tmp_path / "out").iterdir()} == {
        "a_0.png": "1",
        "a_0_2.png": "2",
    }


def test_no_picture_takes_the_place_of_one_that_another_process_has_written_meanwhile(tmp_path, monkeypatch):
    black, white = (Image.new("RGB", (8, 8), colour) for colour in ("black", "white"))
    folder, write = PictureFolder(tmp_path), picture_files.write_atomically

    def too_late(*arguments: Any, **more: Any) -> None:
        monkeypatch.undo()
        assert folder.write("a", black, {}) == tmp_path / "a.png"
        write(*arguments, **more)

    monkeypatch.setattr(picture_files, "write_atomically", too_late)
    assert folder.write("a", white, {}) == tmp_path / "a_2.png"
    assert [Image.open(tmp_path / name).getpixel((0, 0))[0] for name in ("a.png", "a_2.png")] == [0, 255]


def test_a_sweep_takes_model_and_sampler_as_plain_keys(draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for Hydra's note of a sweep
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


def bomb() -> bytes:
    """A PNG of a few bytes that says it has 9000 x 8500 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9000, 8500, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_two_megabytes_are_no_prompt(draw, tmp_path):
    (tmp_path / "prompts.txt").write_text("a" * 2_000_000)
    exit_code, paths, errors = draw(f"batch={tmp_path / 'prompts.txt'}")
    assert (exit_code, paths) == (2, []) and "goes on for 2000000 characters: expected at most 10000" in errors
    assert len(errors.splitlines()) == 1 and len(errors) < 200


def test_a_run_of_another_kind_is_no_model(draw, tiny_run, tmp_path):
    for part in ("vae", "text_encoder"):
        shutil.copytree(tiny_run.model_folder / part, tmp_path / part / "model" / part)
        exit_code, paths, errors = draw("prompt=a", f"model={tmp_path / part}")
        assert (exit_code, paths) == (2, []) and "is no whole model: expected a run, or a folder" in errors
        assert f"It holds {part}." in errors and len(errors.splitlines()) == 1


def test_damaged_weights_are_refused(draw, tiny_run, tmp_path):
    folder = shutil.copytree(tiny_run.model_folder, tmp_path / "model")
    weights = folder / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    exit_code, paths, errors = draw("prompt=a", f"model={folder}")
    assert (exit_code, paths) == (2, []) and f"{folder / 'unet'} cannot be read" in errors
    assert len(errors.splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompt=", "prompt 1 of 1 is ''"),
        ("prompt=[]", "there is no prompt"),
        ("batch=prompts.txt", "there are prompt and batch"),
        (
            "sampler=eular",
            "'eular' is unknown; expected ddim, ddpm, euler, heun or dpmpp_2m. Did you mean 'euler'?",
        ),
        ("num_inference_steps=0", "num_inference_steps is 0"),
        ("guidance_scale=a lot", "guidance_scale is 'a lot': expected a number"),
        ("guidance_scale=nan", "guidance_scale is nan"),
        ("size=30", "size=30 is not divisible by the VAE's factor 4. Set it to 28 or 32."),
        ("num_per_prompt=0", "num_per_prompt is 0"),
        ("seed=-1", "seed is -1"),
        ("weights=mean", "weights='mean' is unknown"),
        ("device=abacus", "device is 'abacus': expected cuda, cuda:1, mps or cpu"),
        ("device=meta", "device is 'meta'"),
        ("sampler=[ddim]", "sampler=['ddim'] is unknown"),
        ("model=", "model is empty: expected a run"),
        (f"model={'x' * 300}", "File name too long"),
        ("dtype=fp8", "dtype='fp8' is unknown"),
        ("negative_prompt=[a, b]", "2 negative prompts for 1 prompts"),
        ("guidance_interval=[5, 1]", "expected the lower noise level first"),
        ("init_image=nowhere.png", "init_image=nowhere.png: there is no such file"),
        ("init_image=TMP/text.png", "the image is none of JPEG, PNG, WEBP"),
        ("init_image=TMP/bomb.png", "the image has 9000x8500 pixels"),
        ("batch=TMP/nowhere.txt", "there are prompt and batch"),
        ("interactive=true", "interactive=true asks for prompts itself"),
        ("model=runs/nowhere", "there is no model runs/nowhere"),
        ("modle=x", "did you mean 'model'"),
        ("sampler.num_inference_steps=3", "sampler.num_inference_steps"),
    ],
)
def test_what_cannot_be_drawn_is_refused_in_one_line(draw, tmp_path, override, said):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "bomb.png").write_bytes(bomb())
    exit_code, paths, errors = draw("prompt=a", override.replace("TMP", str(tmp_path)))
    assert (exit_code, paths) == (2, []) and said in errors and len(errors.splitlines()) == 1
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_a_place_that_takes_no_files_is_found_out_first(draw, tmp_path):
    (tmp_path / "file").touch()
    exit_code, _, errors = draw("prompt=a", f"out={tmp_path / 'file'}", "model=runs/nowhere")
    assert exit_code == 4 and errors.startswith(f"sdscratch: cannot write into {tmp_path / 'file'}")

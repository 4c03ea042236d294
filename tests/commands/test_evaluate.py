"""`sdscratch evaluate` and `evaluate compare`, on the tiny run and a CLIP that has learnt eight scenes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from sdscratch.cli import main
from sdscratch.data.shapes import write_shapes
from sdscratch.errors import DataError
from sdscratch.evaluation.results import Evaluation, Row
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models.encoders import load_vae, new_clip

HOSTILE = {"LONG": "a ring\n" + "x" * 20_000, "DEEP": "[" * 100_000, "WIDE": f"Prompt\tCategory\n{'x' * 200_000}\ta"}
SMALL = ("num_inference_steps=2", "guidance_scale=1", "replicates=4", "batch_size=8", "device=cpu", "count=12")


class Place(NamedTuple):
    """What evaluations take: the words that every one of them begins with, and real pictures."""

    words: tuple[str, ...]
    real: Path
    folder: Path


@pytest.fixture(scope="module")
def place(tiny_run, tmp_path_factory) -> Place:
    folder = tmp_path_factory.mktemp("evaluate")
    write_shapes(folder / "shapes", 4, 12, 32)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    clip = new_clip(["a red circle", "blue"], vocab_size=600, max_length=24, **sizes)
    save_model_folder(folder / "clip", text=clip, about={})
    words = (f"model={tiny_run.path}", f"clip={folder / 'clip'}", *SMALL)
    return Place(words, folder / "shapes/val", folder)


@pytest.fixture(scope="module")
def whole(place) -> Path:
    """All measures of the captions of real pictures."""
    out = place.folder / "whole"
    assert main(["evaluate", *place.words, f"out={out}", f"path={place.real}", "suite=captions"]) == 0
    return out


def tables(out: Path) -> dict[str, dict[str, Any]]:
    return {table["title"]: table for table in json.loads((out / "results.json").read_text())["tables"]}


def values(table: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(row["measure"], row["group"]): row["value"] for row in table["rows"]}


def test_everything_that_model_and_data_allow_is_measured_with_its_protocol(whole, tiny_run):
    found = tables(whole)
    assert list(found) == [
        "Held-out loss of the UNet",
        "Pictures and their prompts",
        "Drawn against real pictures",
        "Reconstructions of the VAE",
        "Retrieval by CLIP",
    ]
    protocol = found["Drawn against real pictures"]["protocol"]
    asked = {"model": str(tiny_run.path), "weights": "ema", "num_inference_steps": 2, "guidance_scale": 1, "seed": 0}
    assert protocol.items() >= {**asked, "N": 12, "sampler": "euler", "suite": "captions", "batch_size": 8}.items()
    assert {"features", "their weights", "real pictures", "of them", "network"} <= protocol.keys()
    assert all(row["low"] is not None for row in found["Drawn against real pictures"]["rows"])


def test_the_loss_is_the_one_that_training_ended_with(whole, tiny_run):
    ended = json.loads((tiny_run.path / "objective.json").read_text())
    found = values(tables(whole)["Held-out loss of the UNet"])
    assert found["loss", "all"] == pytest.approx(ended["value"], rel=1e-5)
    assert sum(group.startswith("timesteps") for _, group in found) == 10


def test_the_page_is_one_file_with_its_pictures_and_protocols_in_it(whole):
    page = (whole / "report.html").read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "Drawn against real pictures" in page and "num_inference_steps" in page and "FID of two halves" in page


def test_a_second_call_draws_and_looks_at_nothing_again_and_finds_the_same(whole, place):
    kept = [*whole.glob("pictures/*.png"), *whole.glob("features/*.npy")]
    before, results = [path.stat().st_mtime_ns for path in kept], (whole / "results.json").read_bytes()
    words = [f"out={whole}", f"path={place.real}", "suite=captions"]
    assert len(kept) == 12 + 2 and main(["evaluate", *place.words, *words]) == 0
    assert [path.stat().st_mtime_ns for path in kept] == before
    assert (whole / "results.json").read_bytes() == results


def test_a_checkpoint_is_measured_as_what_it_was_at_its_step(place, whole, tiny_run):
    older, newest = (checkpoint.path for checkpoint in tiny_run.checkpoints()[-2:])
    losses = []
    for path in (older, newest):
        out = place.folder / path.stem
        assert main(["evaluate", *place.words, f"model={path}", f"out={out}", "measures=loss"]) == 0
        losses.append(values(tables(out)["Held-out loss of the UNet"])["loss", "all"])
    assert losses[1] == pytest.approx(values(tables(whole)["Held-out loss of the UNet"])["loss", "all"])
    assert losses[0] > losses[1]


def test_prompts_of_shapes_are_judged_and_drawn_in_parts(place, capsys):
    out = place.folder / "judged"
    words = [*place.words, f"out={out}", "measures=pictures"]
    assert main(["evaluate", *words, "part=1/2"]) == 0
    assert sorted(path.name for path in out.glob("pictures/*.png")) == [f"{i:05d}.png" for i in range(8, 12)]
    assert not (out / "results.json").exists()
    assert main(["evaluate", *words]) == 0
    found = values(tables(out)["What the judge of shapes read back"])
    assert {measure for measure, _ in found} >= {"right colour", "right shape", "right all four"}
    assert str(out / "report.html") in capsys.readouterr().out


def test_a_suite_has_a_row_and_a_grid_for_each_category(place):
    file, out = place.folder / "parti.tsv", place.folder / "parti"
    rows = [f"a thing {i}\t{'Animals' if i % 2 else 'Art & <i>'}\tBasic\t" for i in range(6)]
    file.write_text("\n".join(["Prompt\tCategory\tChallenge\tNote", *rows]))
    words = [f"out={out}", "measures=[pictures]", "suite=partiprompts", f"suite.path={file}"]
    assert main(["evaluate", *place.words, *words]) == 0
    found = values(tables(out)["Pictures and their prompts"])
    assert ("CLIP score", "Animals") in found and ("CLIP score", "Art & <i>") in found
    assert len(list(out.glob("grids/*.png"))) == 2 and "Art &amp; &lt;i&gt;" in (out / "report.html").read_text()


def test_a_vae_alone_is_measured(place, tiny_run):
    folder, out = place.folder / "vae", place.folder / "of_vae"
    save_model_folder(folder, vae=load_vae(str(tiny_run.model_folder)), about={})
    words = [f"model={folder}", f"out={out}", f"path={place.real}", "measures=autoencoder"]
    assert main(["evaluate", *place.words, *words]) == 0
    found = values(tables(out)["Reconstructions of the VAE"])
    assert {measure for measure, _ in found} == {
        "PSNR in dB",
        "SSIM",
        "distance of features",
        "FID of reconstructions",
    }


def test_a_model_without_its_run_or_a_clip_is_measured_by_what_is_left(place, tiny_run, capsys):
    folder = shutil.copytree(tiny_run.model_folder, place.folder / "bare")
    shutil.rmtree(folder / "clip")
    out = place.folder / "of_bare"
    assert main(["evaluate", *SMALL, f"model={folder}", f"out={out}"]) == 0
    assert list(tables(out)) == ["What the judge of shapes read back"]
    assert "has no CLIP" in capsys.readouterr().err


def test_evaluations_stand_side_by_side_and_other_protocols_are_named(place, whole, capsys):
    other, page = place.folder / "other", place.folder / "page.html"
    words = [f"out={other}", f"path={place.real}", "suite=captions", "measures=[pictures]", "num_inference_steps=3"]
    assert main(["evaluate", *place.words, *words]) == 0
    capsys.readouterr()
    assert main(["evaluate", "compare", f"evaluations=[{whole},{other}]", f"out={page}"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [str(page)]
    assert "Drawn against real pictures: these numbers do not compare, num_inference_steps differ" in said.err
    text = page.read_text()
    assert "<th>whole</th>" in text and "<th>other</th>" in text and "These numbers do not compare" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["suite=captions"], "set path=FOLDER"),
        (["suite=lines", "suite.path=nowhere.txt"], "suite.path=nowhere.txt cannot be read"),
        (["suite=partiprompts"], "suite.path: required, but not set"),
        (["suite=nothing"], "nothing"),
        (["measures=fid"], "measures names 'fid': expected some of loss, pictures, autoencoder, retrieval"),
        (["measures=retrieval"], "measures=retrieval needs a CLIP"),
        (["count=0"], "count is 0"),
        (["suite.count=0"], "suite.count is 0"),
        (["measures=[]"], "measures is empty"),
        (["seed=-1"], "seed is -1"),
        (["device=meta"], "device is 'meta': expected cuda"),
        (["sampler=[ddim]"], "sampler=['ddim'] is unknown"),
        (["guidance_interval=[5,1]"], "expected the lower noise level first"),
        (["height=64", "suite=captions", "path=REAL"], "measured as squares"),
        (["suite=lines", "suite.path=LONG"], "goes on for 20000 characters"),
        (["suite=geneval", "suite.path=DEEP"], "DEEP, line 1: expected a JSON object"),
        (["suite=partiprompts", "suite.path=WIDE"], "is no table of prompts: field larger"),
        (["count=3", "suite=captions", "path=REAL"], "too few for FID"),
        (["replicates=-1"], "replicates is -1"),
        (["part=4/4"], "part is 4/4"),
        (["size=30"], "size=30 is not divisible"),
        (["guidance_scale=nan"], "guidance_scale is nan"),
        (["sampler=eular"], "Did you mean 'euler'?"),
        (["num_inference_steps=0"], "num_inference_steps is 0"),
        (["clip=runs/none"], "runs/none"),
        (["path=nowhere", "measures=[autoencoder]"], "no shards in nowhere"),
        (["model=runs/nowhere"], "there is no model runs/nowhere"),
        (
            ["features=inception", "features.path=x", "measures=[pictures]", "suite=captions", "path=REAL"],
            "torch_fidelity",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(place, tmp_path, capsys, words, said):
    words = [word.replace("REAL", str(place.real)) for word in words]
    for name, content in HOSTILE.items():
        (tmp_path / name).write_text(content)
    words = [re.sub("(LONG|DEEP|WIDE)$", rf"{tmp_path}/\1", word) for word in words]
    assert main(["evaluate", *place.words, "measures=[pictures]", f"out={tmp_path}", *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.splitlines()) == 1 or "required, but not set" in error  # which shows the whole command


def test_a_setting_that_is_refused_leaves_nothing_behind_that_refuses_the_right_one(place, capsys):
    out = place.folder / "mended"
    words = [*place.words, f"out={out}", "measures=[pictures]", "count=2"]
    assert main(["evaluate", *words, "guidance_scale=nan"]) == 2 and not out.exists()
    chosen = ["height=64", "width=32", "dtype=bf16", "guidance_scale=2", "guidance_interval=[0.5,5]"]
    assert main(["evaluate", *words, *chosen]) == 0
    protocol = tables(out)["Pictures and their prompts"]["protocol"]
    assert protocol.items() >= {"height": 64, "width": 32, "dtype": "bf16", "guidance_interval": [0.5, 5]}.items()
    with Image.open(out / "pictures/00000.png") as picture:
        assert picture.size == (32, 64)
    found = tables(out)["What the judge of shapes read back"]["rows"]
    assert all(0 <= row["low"] <= row["high"] <= 1 for row in found)


@pytest.mark.parametrize(
    "change",
    [
        {"grids": {"a": "../secret.png"}},
        {"grids": {"a": "/etc/passwd"}},
        {"grids": {"a": 3}},
        {"tables": [{"title": "a", "protocol": 3, "rows": []}]},
        {"tables": [{"title": "a", "protocol": {}, "rows": [["m", "g", "x", None, None, 1]]}]},
        {"tables": [{"title": "a", "protocol": {}, "rows": [["m", "g", 1.0, 1.0, None, 1]]}]},
    ],
)
def test_results_of_another_shape_are_refused_and_bring_no_file_of_elsewhere_into_a_page(tmp_path, change):
    for table in change.get("tables", []):
        table["rows"] = [dict(zip(Row.__annotations__, row, strict=True)) for row in table["rows"]]
    (tmp_path / "results.json").write_text(json.dumps({"title": "a", "tables": [], "grids": {}, **change}))
    with pytest.raises(DataError, match="holds no evaluation"):
        Evaluation.read(tmp_path)


def test_a_folder_without_an_evaluation_is_refused(whole, tmp_path, capsys):
    assert main(["evaluate", "compare", f"evaluations=[{whole},{tmp_path}]"]) == 2
    assert f"{tmp_path} holds no evaluation" in capsys.readouterr().err
    assert main(["evaluate", "compare", f"evaluations=[{whole},{whole}]"]) == 2
    assert "expected each folder once" in capsys.readouterr().err
    assert main(["evaluate", "compare", f"evaluations=[{whole}]"]) == 2
    assert "expected two folders or more" in capsys.readouterr().err

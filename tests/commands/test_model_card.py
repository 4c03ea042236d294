"""The model card: what it says of how a model came about and how good it is, and that it says nothing of another model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sdscratch.cli import main
from sdscratch.commands.provenance import provenance
from sdscratch.evaluation.results import Evaluation, Row, Table
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.interop.model_card import Provenance, model_card
from sdscratch.models.encoders import fingerprint


@pytest.fixture
def evaluation(tiny_run, tmp_path) -> Path:
    """As `evaluate` would leave it: two tables of this model's networks, one of a CLIP."""
    model = load_model_folder(tiny_run.model_folder)
    unet, vae = fingerprint(model.unet), fingerprint(model.encoders.vae)
    protocol = {
        "model": str(tiny_run.path),
        "real pictures": "/home/someone/data/coco/val",
        "sampler": "euler",
        "N": 1000,
    }
    rows = [Row("FID", "all", 12.3456, 11.0, 13.5, 1000), Row("FID", "a category", 99.0, None, None, 10)]
    tables = [
        Table("Drawn against real pictures", {**protocol, "network": unet}, rows, "Lower is nearer."),
        Table("Reconstructions of the VAE", {"network": vae}, [Row("PSNR", "val", 28.0, None, None, 1000)]),
        Table("Retrieval by CLIP", {"network": "0" * 16}, [Row("R@1", "all", 0.5, None, None, 1000)]),
    ]
    Evaluation("Evaluation", tables).write(tmp_path / "evaluation")
    return tmp_path / "evaluation"


def card(out: Path) -> str:
    return (out / "README.md").read_text()


def test_the_numbers_of_an_evaluation_are_on_the_card_with_their_protocol(tiny_run, evaluation, tmp_path):
    assert main(["export", str(tiny_run.path), str(tmp_path / "out"), f"evaluation={evaluation}"]) == 0
    text = card(tmp_path / "out")
    assert "| FID | 12.35 | 11 to 13.5 | 1000 |" in text and "| PSNR, val | 28 |  | 1000 |" in text
    assert "sampler euler, N 1000" in text and "real pictures coco/val" in text and "/home/someone" not in text
    assert "R@1" not in text and "| 99 |" not in text


def test_an_evaluation_of_another_model_is_refused_where_it_is_named_and_left_aside_where_it_is_found(
    tiny_run, evaluation, tmp_path, capsys, monkeypatch
):
    raw = ["weights=raw", f"evaluation={evaluation}"]
    Evaluation("Evaluation", Evaluation.read(evaluation).tables[:1]).write(evaluation)
    assert main(["export", str(tiny_run.path), str(tmp_path / "out"), *raw]) == 2
    assert "has measured other networks than these" in capsys.readouterr().err
    assert main(["export", str(tiny_run.path), str(tmp_path / "out"), f"evaluation={tmp_path}"]) == 2
    assert "holds no evaluation" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    evaluation.rename(tmp_path / "moved")
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "moved").rename(tmp_path / "evaluations" / tiny_run.path.name)
    for words, found in (([], True), (["weights=raw"], False)):
        assert main(["export", str(tiny_run.path), str(tmp_path / f"out{found}"), *words]) == 0
        assert ("## How good it is" in card(tmp_path / f"out{found}")) == found


def test_the_card_says_with_which_code_a_run_was_trained_what_it_is_for_and_what_it_is_not(tiny_run, tmp_path):
    environment = json.loads((tiny_run.path / "environment.json").read_text())
    assert environment["commit"] is None or len(environment["commit"].removesuffix("+changes")) == 40
    assert main(["export", str(tiny_run.path), str(tmp_path / "out")]) == 0
    text = card(tmp_path / "out")
    assert f"torch {environment['torch']}" in text and str(environment["commit"] or "") in text
    assert "## What it is for, and its limits" in text and "there is no safety checker" in text


def test_the_encoders_that_a_unet_stands_on_are_told_with_their_runs_or_names(tiny_run, tmp_path):
    for folder in (tmp_path, tmp_path / "vae"):
        folder.mkdir(exist_ok=True)
        shutil.copy(tiny_run.path / "state.json", folder)
        shutil.copy(tiny_run.config_file, folder)
    cfg = OmegaConf.load(tmp_path / "config.yaml")
    cfg.vae, cfg.text_encoder = {"path": f"{tmp_path}/vae/model"}, {"path": "openai/clip-vit-large-patch14"}
    OmegaConf.save(cfg, tmp_path / "config.yaml")
    model = load_model_folder(tiny_run.model_folder)
    text = model_card("mine", model, "fp32", provenance(str(tmp_path), model.about), file="mine")
    assert model_card(
        "mine", model._replace(about={"posthoc_ema": {}, "imported": {}}), "fp32", Provenance(), file="mine"
    )
    assert "### Its VAE: tiny\n\n- 30 optimizer steps, 120 samples seen" in text
    assert "### Its text encoder: openai/clip-vit-large-patch14" in text

"""Training on several sources: the run is the same however it is stopped, and each source is measured apart."""

from __future__ import annotations

from pathlib import Path

import pytest
from stages import PowerCut, latent_diffusion, watched
from test_resume import assert_same_weights, rows
from tiny import BARE, SMALLER

from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.config import compose
from sdscratch.data import DataModule
from sdscratch.data.shapes import write_shapes
from sdscratch.run_folder import RunFolder


@pytest.fixture(scope="session")
def scenes(tmp_path_factory) -> Path:
    """Two folders of drawn scenes, each with held-out ones beside."""
    root = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate(("dawn", "dusk")):
        write_shapes(root / name, 48, 16, 32, seed)
    return root


@pytest.fixture
def words(scenes, tmp_path):
    """`words("max_steps=10", ...)`: the tiny experiment on both folders, three samples of one for one of the other."""
    sources = ", ".join(
        f"{name}: {{path: {scenes}/{name}/train, share: {share}, val_path: {scenes}/{name}/val}}"
        for name, share in (("dawn", 75), ("dusk", 25))
    )
    data = ("dataset=mixture", "~dataset.count", "~dataset.val_count", f"dataset.sources={{{sources}}}")
    return lambda *more: ["experiment=tiny", *data, f"paths.runs={tmp_path}/runs", "threads=1", *more]


@pytest.fixture
def config(words):
    return lambda *more: compose("train", words(*more))


FEW = (*BARE, *SMALLER[:2], "max_steps=8", "callbacks.checkpoints.every=4", "callbacks.validation.every=4")


def test_the_tiny_experiment_on_two_folders_is_stopped_and_goes_on_to_the_last_bit(words, config, tmp_path):
    assert main(["train", *words(*FEW, "name=whole")]) == 0
    with pytest.raises(PowerCut), watched(cut_after=6):
        train(config(*FEW, "name=cut"))
    with watched() as (positions, _):
        assert main(["resume", str(tmp_path / "runs" / "cut")]) == 0
    assert positions == [list(range(4 * step, 4 * step + 4)) for step in range(4, 8)]
    whole, cut = (RunFolder(tmp_path / "runs" / name) for name in ("whole", "cut"))
    assert_same_weights(cut, whole)
    assert rows(cut) == rows(whole)
    measured = [row for row in rows(whole) if "val/loss" in row]
    assert [row["step"] for row in measured] == [4, 8]
    for row in measured:
        assert row["val/loss"] == pytest.approx(0.75 * row["val/loss/dawn"] + 0.25 * row["val/loss/dusk"])
        assert row["val/loss/dawn"] != row["val/loss/dusk"]


def test_other_shares_are_other_data(words, config, tmp_path, capsys):
    train(config(*FEW, "max_steps=4"))
    resume = ["resume", str(tmp_path / "runs" / "tiny"), "max_steps=8", "dataset.sources.dusk.share=50"]
    assert main(resume) == 2
    said = capsys.readouterr().err.splitlines()[1:]
    assert said[0].split(": ")[0].strip() == "dataset.fingerprint"
    assert said[1].strip() == "dataset.sources.dusk.share: 25 -> 50"
    assert main([*resume, "resume.allow_change=[dataset]"]) == 0


def test_a_source_has_the_loss_that_it_has_alone(config, scenes):
    module, datamodule = latent_diffusion(config("dataset.val_samples=12"))
    module.source_weights = datamodule.source_weights
    found = module.evaluate(module.ema.network, datamodule.val_dataloader())
    module.source_weights = {}
    for name in ("dawn", "dusk"):
        folder = scenes / name
        alone = DataModule(f"{folder}/train", 32, 4, seed=1, val_path=f"{folder}/val", val_samples=6)
        alone.collate = datamodule.collate
        measures = module.evaluate(module.ema.network, alone.val_dataloader())
        assert measures["val/loss"] == pytest.approx(found[f"val/loss/{name}"], rel=1e-6)


@pytest.mark.parametrize(
    ("stage", "measure"),
    [
        (("stage=autoencoder", "vae=kl_tiny"), "val/reconstruction"),
        (("stage=clip", "text_encoder=clip_tiny"), "val/r_at_1"),
    ],
)
def test_the_stages_on_pictures_train_on_mixtures_too(words, tmp_path, stage, measure):
    small = ("name=tiny", "trainer=cpu", "logger=none", "max_steps=2", "global_batch_size=4", "dataset.resolution=32")
    data = [word for word in words() if not word.startswith(("experiment=", "~"))]
    assert main(["train", *stage, *small, *data, *BARE, "callbacks.metrics.every=1"]) == 0
    run = RunFolder(tmp_path / "runs" / "tiny")
    row = run.read_metrics()[-1]
    assert measure in row
    if measure == "val/reconstruction":
        both = [row[f"val/reconstruction/{name}"] for name in ("dawn", "dusk")]
        assert 0.75 * both[0] + 0.25 * both[1] == pytest.approx(row[measure], rel=1e-6)

"""`sdscratch export`: what other programs read, and the page that goes with it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file
from tiny import files_of_at_most

from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.interop import load_released_checkpoint
from sdscratch.interop.diffusers_folder import Model, load_model_folder, save_model
from sdscratch.models import ReleasedUNet
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_run_becomes_a_diffusers_folder_of_its_average_with_a_card(tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(tiny_run.path), str(out)]) == 0
    assert capsys.readouterr() == (f"{out}\n", "")
    ours, theirs = load_file(tiny_run.model_folder / UNET), load_file(out / UNET)
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    StableDiffusionPipeline.from_pretrained(out, local_files_only=True)
    card = (out / "README.md").read_text()
    for said in ("| weights | ema, fp32 |", "30 optimizer steps, 120 samples seen", "FlowMatching", "64 samples"):
        assert said in card, said
    assert "val/loss = " in card and "![Pictures" in card and (out / "samples.png").is_file()
    assert str(tmp_path.parent) not in card and card.endswith("\n")


def test_raw_weights_are_those_of_the_newest_checkpoint(tiny_run, tmp_path):
    out = tmp_path / "out"
    assert main(["export", str(tiny_run.path), str(out), "weights=raw"]) == 0
    state = tiny_run.newest_intact_checkpoint().load()["state_dict"]
    for name, tensor in load_file(out / UNET).items():
        assert torch.equal(tensor, state[f"network.{name}"])
    assert json.loads((out / "sdscratch.json").read_text())["weights"] == "raw"
    assert "| weights | raw, fp32 |" in (out / "README.md").read_text()


def test_a_checkpoint_is_exported_as_what_it_was_at_its_step(tiny_run, tmp_path):
    older, out = tiny_run.checkpoints()[-2], tmp_path / "out"
    assert main(["export", str(older.path), str(out)]) == 0
    weights = older.load()["ema"]["weights"]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in load_file(out / UNET).items())
    assert json.loads((out / "sdscratch.json").read_text())["step"] == older.step
    card = (out / "README.md").read_text()
    assert f"{older.step} optimizer steps, {older.samples_seen} samples seen" in card
    assert "30 optimizer steps" not in card and "val/loss = " not in card


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_half_precision_halves_every_part_and_is_read_back(tiny_run, tmp_path, capsys, name, dtype):
    out = tmp_path / "out"
    assert main(["export", str(tiny_run.path), str(out), f"dtype={name}"]) == 0
    assert capsys.readouterr().err == ""
    for path in out.rglob("*.safetensors"):
        floats = {tensor.dtype for tensor in load_file(path).values() if tensor.is_floating_point()}
        assert floats == {dtype}, path
    picture = TextToImage.from_pretrained(out)("a red circle", num_inference_steps=2)[0]
    assert picture.size == (32, 32)


def test_a_single_file_is_imported_again_with_the_same_defaults(tiny_run, tmp_path, capsys):
    file, back = tmp_path / "a.safetensors", tmp_path / "back"
    assert main(["export", str(tiny_run.path), str(file), "format=single_file"]) == 0
    assert "from_single_file" in (tmp_path / "a.configs" / "README.md").read_text()
    assert main(["import", str(file), str(back)]) == 0
    ours, theirs = (TextToImage.from_pretrained(folder) for folder in (tiny_run.path, back))
    assert theirs.defaults == ours.defaults
    assert load_model_folder(back).about["step"] == 30


def test_a_card_tells_every_run_on_the_way(tiny_run, tiny_config, tmp_path):
    cfg = tiny_config("name=second", f"init_from={tiny_run.path}", "max_steps=2", "callbacks.previews=null")
    second = train(cfg)
    assert main(["export", str(second.path), str(tmp_path / "out")]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.index("### tiny") < card.index("### second")
    assert "2 optimizer steps, 8 samples seen" in card


@pytest.fixture
def released(tiny_run: RunFolder, tmp_path: Path) -> Path:
    """A model folder with the released checkpoint's kind of network."""
    torch.manual_seed(0)
    model = load_model_folder(tiny_run.model_folder)
    sizes = {"block_out_channels": [32, 64], "attention_levels": [1], "num_attention_heads": 4, "layers_per_block": 1}
    unet = ReleasedUNet(**sizes, **model.encoders.unet_sizes).eval()
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    save_model(tmp_path / "released", Model(unet, *model[1:4], {}))
    return tmp_path / "released"


def test_the_released_network_is_no_diffusers_folder_but_a_file_under_its_own_names(released, tmp_path, capsys):
    assert main(["export", str(released), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "has the released checkpoint's network, which diffusers does not have" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert main(["export", str(released), str(tmp_path / "a.safetensors"), "format=single_file"]) == 0
    found = load_released_checkpoint(tmp_path / "a.safetensors", heads=4).state_dict()
    for name, tensor in load_model_folder(released).unet.state_dict().items():
        assert torch.equal(found[name], tensor)
    assert "which diffusers does not have" in (tmp_path / "a.configs" / "README.md").read_text()


def test_what_cannot_be_exported_is_one_line_and_exit_code_2(tiny_run, tmp_path, capsys, monkeypatch):
    (tmp_path / "full.safetensors").touch()
    os.mkfifo(tmp_path / "pipe")
    run, free = str(tiny_run.path), str(tmp_path / "new")
    for words, said in (
        ([run, free, "format=onnx"], "format='onnx' is unknown; expected diffusers or single_file"),
        ([run, free, "dtype=fp8"], "dtype='fp8' is unknown"),
        ([run, free, "weights=both"], "weights='both' is unknown"),
        ([run, free, "format=single_file"], "expected one that ends with .safetensors"),
        ([run, str(tmp_path / "full.safetensors"), "format=single_file"], "is there already"),
        ([run, run], "is there already"),
        ([run, ""], "out is empty: expected a folder"),
        ([run, str(tmp_path / "pipe")], "is there already"),
        ([run, free, "push=nobody"], "push=nobody is no repository"),
        ([run, free, "push=3"], "push=3 is no repository"),
        ([str(tmp_path), free], "is no whole model"),
        ([str(tiny_run.model_folder), free, "weights=raw"], "weights=raw needs a run with checkpoints"),
    ):
        assert main(["export", *words]) == 2, words
        errors = capsys.readouterr().err
        assert said in errors and errors.count("\n") == 1, errors
    assert not Path(free).exists()


@pytest.mark.parametrize("words", [["out"], ["out.safetensors", "format=single_file"]])
def test_an_export_that_finds_the_disk_full_leaves_nothing_of_itself(tiny_run, tmp_path, capsys, words):
    out, *others = words
    with files_of_at_most(100_000):
        assert main(["export", str(tiny_run.path), str(tmp_path / out), *others]) == 4
    errors = capsys.readouterr().err
    assert "Free some space" in errors and errors.count("\n") == 1 and not list(tmp_path.iterdir())


def test_what_cannot_be_uploaded_is_said_and_stays(tiny_run, tmp_path, capsys):
    """The tests have no network."""
    out = tmp_path / "out"
    assert main(["export", str(tiny_run.path), str(out), "push=someone/something"]) == 2
    assert "push=someone/something: the hub did not give what was asked for" in capsys.readouterr().err
    load_model_folder(out)

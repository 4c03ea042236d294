"""`sdscratch import`: models made elsewhere become model folders that can be sampled and trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.diffusion import NoiseSchedule
from sdscratch.interop.diffusers_folder import find_model_folder, load_model_folder
from sdscratch.interop.single_file import configs_beside, write_single_file
from sdscratch.models import ReleasedUNet
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder

SIZES = {
    "block_out_channels": [32, 32, 64],
    "attention_levels": [1, 2],
    "num_attention_heads": 4,
    "layers_per_block": 1,
}


@pytest.fixture(scope="module")
def released(tiny_run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ReleasedUNet]:
    """A small file in the released checkpoint's format, for the tiny run's encoders, and the network of its average."""
    torch.manual_seed(0)
    fits = load_model_folder(tiny_run.model_folder).encoders.unet_sizes
    unet = ReleasedUNet(**SIZES, **fits)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    shadow = {f"module.{name}": tensor for name, tensor in unet.state_dict().items()}
    live = {name: tensor + 0.01 for name, tensor in unet.state_dict().items()}
    path = tmp_path_factory.mktemp("released") / "sd_epoch_042.pt"
    torch.save({"unet_state_dict": live, "ema_state_dict": {"shadow": shadow, "decay": 0.9}, "epoch": 42}, path)
    return path, unet


@pytest.fixture
def imported(released, tiny_run, tmp_path) -> Path:
    encoders = [f"vae={tiny_run.model_folder}", f"text_encoder={tiny_run.model_folder}"]
    assert main(["import", str(released[0]), str(tmp_path / "model"), "heads=4", *encoders]) == 0
    return tmp_path / "model"


def test_the_released_checkpoint_becomes_a_model_folder(imported, released):
    model = load_model_folder(imported)
    assert isinstance(model.unet, ReleasedUNet)
    for name, tensor in released[1].state_dict().items():
        assert torch.equal(model.unet.state_dict()[name], tensor)
    assert json.loads((imported / "unet/config.json").read_text())["_class_name"] == "ReleasedUNet"
    assert (model.noise_schedule.timestep_spacing, model.noise_schedule.steps_offset) == ("leading", 0)
    assert model.noise_schedule.grid(50).timesteps.tolist() == list(range(980, -1, -20))
    assert model.encoders.text.masks_padding  # as it was trained
    assert model.about["imported"] == {"file": "sd_epoch_042.pt", "kind": "released_checkpoint"}


def test_it_is_sampled(imported, tmp_path):
    words = [f"model={imported}", "prompt=a red circle", f"out={tmp_path / 'out'}", "num_inference_steps=2", "size=32"]
    assert main(["sample", *words, "device=cpu"]) == 0
    (picture,) = (tmp_path / "out").iterdir()
    assert Image.open(picture).size == (32, 32)


def test_a_run_begins_from_it(imported, released, tiny_config):
    sizes = [f"model.{name}={value}" for name, value in SIZES.items()]
    fits = [f"model.{name}={value}" for name, value in load_model_folder(imported).encoders.unet_sizes.items()]
    encoders = ["vae=trained", f"vae.path={imported}", "text_encoder=trained", f"text_encoder.path={imported}"]
    cfg = tiny_config("model=unet_sd_from_scratch", f"init_from={imported}", "max_steps=1", *sizes, *fits, *encoders)
    cfg.optimizer.lr = 0.0
    model = load_model_folder(train(cfg).model_folder)
    assert isinstance(model.unet, ReleasedUNet)
    for name, tensor in released[1].state_dict().items():
        torch.testing.assert_close(model.unet.state_dict()[name], tensor)


def test_a_single_file_comes_back_with_the_configs_beside_it(tiny_run, tmp_path):
    model = load_model_folder(tiny_run.model_folder)
    write_single_file(tmp_path / "a.safetensors", model)
    assert main(["import", str(tmp_path / "a.safetensors"), str(tmp_path / "model")]) == 0
    found = load_model_folder(tmp_path / "model")
    for name, tensor in model.unet.state_dict().items():
        assert torch.equal(found.unet.state_dict()[name], tensor)
    assert found.prediction_type == model.prediction_type


def test_a_file_is_a_model_by_itself(tiny_run, tmp_path):
    """Without an import."""
    write_single_file(tmp_path / "a.safetensors", load_model_folder(tiny_run.model_folder))
    pipe, ours = (TextToImage.from_pretrained(model) for model in (tmp_path / "a.safetensors", tiny_run.path))
    noise = ours.noise(1, 32, seed=3)
    settings = {"latents": noise, "num_inference_steps": 2}
    (found,), (expected,) = (model("a red circle", **settings) for model in (pipe, ours))
    assert np.abs(np.asarray(found, int) - np.asarray(expected, int)).max() <= 1


def test_a_file_without_configs_is_sd_1x_as_published(tiny_run, tmp_path, monkeypatch):
    """As small as the tiny run here, apart from the sizes as it is."""
    model = load_model_folder(tiny_run.model_folder)
    text = model.encoders.text.model.config.to_dict()
    for name, sizes in (("UNET", model.unet.config), ("VAE", dict(model.encoders.vae.config)), ("TEXT", text)):
        monkeypatch.setattr(f"sdscratch.interop.single_file.SD1X_{name}", sizes)
    for schedule, prediction_type, expected in (
        (NoiseSchedule(), "epsilon", NoiseSchedule(timestep_spacing="leading", steps_offset=1)),
        (NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction", NoiseSchedule(rescale_zero_terminal_snr=True)),
    ):
        file, out = tmp_path / f"{prediction_type}.safetensors", tmp_path / prediction_type
        write_single_file(file, model._replace(noise_schedule=schedule, prediction_type=prediction_type))
        shutil.rmtree(configs_beside(file))
        assert main(["import", str(file), str(out), f"text_encoder={tiny_run.model_folder}"]) == 0
        found = load_model_folder(out)
        assert (found.noise_schedule, found.prediction_type) == (expected, prediction_type)
        assert not found.encoders.text.masks_padding


def test_a_diffusers_folder_is_read_whole(tiny_run, tmp_path):
    assert main(["import", str(tiny_run.path), str(tmp_path / "model")]) == 0
    assert (
        TextToImage.from_pretrained(tmp_path / "model").unet.config
        == load_model_folder(tiny_run.model_folder).unet.config
    )


def test_a_file_on_the_hub_is_fetched_into_the_cache_once(tiny_run, tmp_path, monkeypatch):
    """Without network what is in the cache is taken."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub" / "models--someone--something"
    snapshot = repository / "snapshots" / "0123456789012345678901234567890123456789"
    write_single_file(snapshot / "a.safetensors", load_model_folder(tiny_run.model_folder))
    configs_beside(snapshot / "a.safetensors").rename(tmp_path / "configs")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    words = ["import", "hf:someone/something/a.safetensors", str(tmp_path / "model")]
    assert main([*words, f"configs={tmp_path / 'configs'}"]) == 0
    assert find_model_folder(tmp_path / "model") == tmp_path / "model"


def test_a_partial_import_says_what_it_left_out(tiny_run, tmp_path, capsys):
    file = tmp_path / "a.safetensors"
    write_single_file(file, load_model_folder(tiny_run.model_folder))
    weights = load_file(file)
    del weights["model.diffusion_model.out.2.bias"]
    save_file(weights, file)
    assert main(["import", str(file), str(tmp_path / "out")]) == 2
    assert "1 missing: model.diffusion_model.out.2.bias. partial=true" in capsys.readouterr().err
    assert main(["import", str(file), str(tmp_path / "out"), "partial=true"]) == 0
    assert "left out: 1 missing: model.diffusion_model.out.2.bias" in capsys.readouterr().err
    load_model_folder(tmp_path / "out")


def test_what_cannot_be_imported_is_one_line_and_exit_code_2(released, tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "text.txt").write_text("no weights")
    save_file({"x": torch.zeros(3)}, tmp_path / "other.safetensors")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").touch()
    free, run = str(tmp_path / "new"), str(tiny_run.path)
    encoders = [f"vae={tiny_run.model_folder}", f"text_encoder={tiny_run.model_folder}"]
    checkpoint = str(tiny_run.checkpoints()[-1].path)
    for words, said in (
        ([str(tmp_path / "nowhere.pt"), free], "there is no model"),
        ([str(tmp_path / "text.txt"), free], "is refused: it is damaged"),
        ([str(tmp_path / "other.safetensors"), free], "is no model that we know"),
        ([checkpoint, free], "is a run's checkpoint: `sdscratch export"),
        ([run, str(tmp_path / "full")], "is there already"),
        ([run, free, "weights=raw"], "is a folder: weights="),
        ([str(released[0]), free, *encoders], "does not fit"),
        ([str(released[0]), free, "vae=no/where"], "there is no CLIP text encoder openai/clip-vit-large-patch14"),
        ([str(released[0]), free, "weights=both"], "weights='both' is unknown"),
        (["hf:someone", free], "is no address on the hub"),
        (["hf:someone/else/a.safetensors", free], "the hub did not give what was asked for"),
        ([run, free, "third"], "cannot read 'third'"),
    ):
        if said == "does not fit":
            words = [*words, "heads=5"]
            said = "multiples of 32 and of model.num_attention_heads=5"
        assert main(["import", *words]) == 2, words
        errors = capsys.readouterr().err
        assert said in errors and errors.count("\n") == 1, errors
    assert not (tmp_path / "new").exists() and (tmp_path / "full" / "precious").exists()

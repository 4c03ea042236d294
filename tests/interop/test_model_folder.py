"""Model folders: what is written is read back, and what is damaged is refused in one line that names it."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, SAMPLING, difference, parts, save

from sdscratch.diffusion import FlowSchedule, NoiseSchedule
from sdscratch.errors import CannotWriteError, DataError
from sdscratch.interop.diffusers_folder import find_model_folder, load_model_folder, save_model_folder
from sdscratch.models import ReleasedUNet, new_vae
from sdscratch.models.encoders import fingerprint
from sdscratch.pipeline import TextToImage

UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"
TEXT, TOKENIZER = "text_encoder/model.safetensors", "tokenizer/tokenizer.json"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(
        tmp_path_factory.mktemp("whole") / "model", NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction"
    )


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """One to damage."""
    return shutil.copytree(whole, tmp_path / "model")


def test_what_is_written_is_read_back_to_the_last_bit(whole):
    unet, (vae, text) = parts().unet, (parts().encoders.vae, parts().encoders.text)
    model = load_model_folder(whole)
    read = (model.unet, model.encoders.vae, model.encoders.text.model)
    for ours, theirs in zip((unet, vae, text.model), read, strict=True):
        expected, found = ours.state_dict(), theirs.state_dict()
        assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)
        assert not theirs.training
    assert model.unet.config == {**unet.config, "sample_size": 8}  # 32 px through a VAE of factor 4
    assert model.encoders.vae.config.scaling_factor == 0.7
    assert torch.equal(model.encoders.text(PROMPTS), text(PROMPTS))
    assert (model.noise_schedule, model.prediction_type) == (
        NoiseSchedule(rescale_zero_terminal_snr=True),
        "v_prediction",
    )
    assert model.about["sampling"] == SAMPLING and model.about["vae_fingerprint"] == fingerprint(vae)


def test_a_released_unet_is_read_back_by_us_and_refused_by_diffusers(tmp_path):
    torch.manual_seed(0)
    unet = ReleasedUNet(block_out_channels=[32, 32], attention_levels=[1], cross_attention_dim=32)
    for weight in unet.parameters():
        torch.nn.init.normal_(weight, std=0.05)
    encoders = parts().encoders
    save_model_folder(
        tmp_path / "model",
        unet=unet,
        vae=encoders.vae,
        text=encoders.text,
        noise_schedule=NoiseSchedule(),
        prediction_type="epsilon",
        about={"sampling": SAMPLING},
    )
    pipe = TextToImage.from_pretrained(tmp_path / "model", device="cpu")
    assert isinstance(pipe.unet, ReleasedUNet) and pipe.unet.config == {**unet.config, "sample_size": 8}
    for name, weight in unet.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], weight)
    red, blue = pipe(["a red circle", "blue"], latents=torch.ones(2, 4, 8, 8))
    assert red.size == (32, 32) and difference([red], [blue]) > 0  # the text reaches the picture
    with pytest.raises(Exception, match="ReleasedUNet"):
        StableDiffusionPipeline.from_pretrained(tmp_path / "model", local_files_only=True)


def test_weights_are_safetensors_and_configs_json(whole):
    assert {path.suffix for path in whole.rglob("*") if path.is_file()} == {".safetensors", ".json", ".txt"}


def test_saving_is_silent_and_replaces_what_was_there(tmp_path, capfd):
    folder = tmp_path / "model"
    save(folder, FlowSchedule(), "flow_prediction")
    (folder / "old").touch()
    save(folder, NoiseSchedule(), "epsilon")
    load_model_folder(folder)
    assert not (folder / "old").exists() and [path.name for path in tmp_path.iterdir()] == ["model"]
    assert capfd.readouterr() == ("", "")


def test_a_folder_that_cannot_be_written_is_left_as_it_was(whole, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match="Free some space"):
        save(tmp_path / "file" / "model", NoiseSchedule(), "epsilon")
    folder = shutil.copytree(whole, tmp_path / "model")
    with pytest.raises(TypeError):
        save_model_folder(folder, vae=parts().encoders.vae, about={"no JSON": object()})
    load_model_folder(folder)


def cut(file: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(
        (folder / file).read_bytes()[: (folder / file).stat().st_size // 2]
    )


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def write(file: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_text(text)


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / old).rename(folder / new)


def without_a_tensor(file: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        weights.pop(sorted(weights)[3])
        save_file(weights, folder / file, metadata={"format": "pt"})

    return damage


def with_another_shape(file: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        save_file({**weights, sorted(weights)[3]: torch.zeros(3, 5)}, folder / file, metadata={"format": "pt"})

    return damage


def with_no_number(file: str) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        weights = load_file(folder / file)
        weights[sorted(weights)[3]].view(-1)[0] = math.nan
        save_file(weights, folder / file, metadata={"format": "pt"})

    return damage


def say(file: str, **values: Any) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **values}))

    return damage


def with_another_vae(folder: Path) -> None:
    sizes = {"block_out_channels": (8, 8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 32}
    new_vae(latent_channels=8, **sizes).save_pretrained(folder / "vae")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((cut(file), file.partition("/")[0]) for file in (UNET, VAE, TEXT, TOKENIZER, "unet/config.json")),
        *((remove(file), file.partition("/")[0]) for file in (UNET, VAE, TEXT, "unet/config.json", "vae/config.json")),
        *((remove(part), f"{part}/ is missing") for part in ("unet", "vae", "text_encoder", "tokenizer", "scheduler")),
        (without_a_tensor(UNET), 'Missing key(s) in state_dict: "conv_norm_out.weight"'),
        (without_a_tensor(VAE), "1 tensors of the VAE are missing, decoder.conv_norm_out.weight first"),
        (without_a_tensor(TEXT), "1 tensors of the CLIP text encoder are missing"),
        (with_another_shape(UNET), "size mismatch for conv_norm_out.weight"),
        (with_another_shape(VAE), "1 tensors of the VAE are mismatched"),
        (with_another_shape(TEXT), "1 tensors of the CLIP text encoder are mismatched"),
        (write("unet/config.json", "[]"), "unet/config.json holds no JSON object"),
        (write("unet/config.json", '{"class_embed_type": "timestep"}'), "class_embed_type is 'timestep'"),
        (say("unet/config.json", layers_per_block=10**9), "layers_per_block is 1000000000, expected at most 100"),
        (write("vae/config.json", "[]"), "vae holds no VAE"),
        (write("text_encoder/config.json", "{}"), "of the CLIP text encoder are"),
        (write("scheduler/scheduler_config.json", "{}"), "scheduler cannot be read: the scheduler is a None"),
        (write("sdscratch.json", "{"), "sdscratch.json cannot be read"),
        (write("sdscratch.json", '{"sampling": []}'), "its sampling is []"),
        (with_another_vae, "in_channels of its unet is 4, but its vae and text_encoder need 8"),
        (say("vae/config.json", scaling_factor=None), "has the scaling_factor None"),
        (say("vae/config.json", scaling_factor=0), "has the scaling_factor 0; expected a number above 0"),
        (say("vae/config.json", scaling_factor=math.nan), "has the scaling_factor nan"),
        (write("sdscratch.json", '{"posthoc_ema": 3}'), "its posthoc_ema is 3"),
        (with_no_number(UNET), "unet: conv_norm_out.weight is not finite"),
        (with_no_number(VAE), "vae: decoder.conv_norm_out.weight is not finite"),
        (with_no_number(TEXT), "text_encoder: "),
        (say("tokenizer/tokenizer_config.json", model_max_length=99), "texts of 99, its text encoder"),
        (rename(UNET, "unet/diffusion_pytorch_model.bin"), "unet"),
        (rename(VAE, "vae/diffusion_pytorch_model.bin"), "vae"),
        (rename(TEXT, "text_encoder/pytorch_model.bin"), "text_encoder"),
    ],
)
def test_damage_is_named_in_one_line(folder, capfd, damage, said):
    damage(folder)
    with pytest.raises(DataError) as caught:
        load_model_folder(folder)
    message = str(caught.value)
    assert said in message and message.startswith(str(folder)) and "\n" not in message and len(message) < 700
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sample_size", [None, [64, 64]])
def test_sizes_as_diffusers_may_write_them_are_read(folder, sample_size):
    say("unet/config.json", sample_size=sample_size)(folder)
    (folder / "sdscratch.json").unlink()
    assert TextToImage.from_pretrained(folder).defaults.size == 64 * 4


def test_a_published_folder_in_half_precision_with_older_names_is_read(folder):
    """Text encoders of SD 1.x have their tensors below `text_model.`, and some are published in float16."""
    for file, prefix in ((UNET, ""), (VAE, ""), (TEXT, "text_model.")):
        weights = {prefix + name: tensor.half() for name, tensor in load_file(folder / file).items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
    (folder / "sdscratch.json").unlink()
    model = load_model_folder(folder)
    for ours, theirs in ((parts().unet, model.unet), (parts().encoders.vae, model.encoders.vae)):
        found = theirs.state_dict()
        assert all(torch.equal(found[name], tensor.half().float()) for name, tensor in ours.state_dict().items())
    torch.testing.assert_close(model.encoders.text(PROMPTS), parts().encoders.text(PROMPTS), atol=5e-3, rtol=0)
    assert model.about == {}


# Which folder is meant


def test_a_hub_id_means_its_snapshot_in_the_local_cache(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--something"
    shutil.copytree(whole, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert find_model_folder("someone/something") == repository / "snapshots" / "abc"


@pytest.mark.parametrize("model", ["runs/nowhere", "no such model", "/nowhere/at/all"])
def test_what_is_nowhere_is_refused(model, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        DataError, match=f"there is no model {model}: expected a run, or a folder with model_index.json"
    ):
        find_model_folder(model)


def test_a_part_alone_is_no_model_and_is_named(tmp_path):
    save_model_folder(tmp_path / "vae_run" / "model", vae=parts().encoders.vae, about={})
    with pytest.raises(DataError, match="It holds vae."):
        find_model_folder(tmp_path / "vae_run")


def test_an_unfinished_run_says_how_to_go_on(tmp_path):
    (tmp_path / "state.json").write_text(json.dumps({"status": "running", "step": 3}))
    with pytest.raises(DataError, match=f"has not finished: `sdscratch resume {tmp_path}`"):
        find_model_folder(tmp_path)

"""Single files under CompVis' names: written, read back, and read by diffusers, with the same pictures."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from safetensors.torch import load_file, save_file
from tiny_models import PROMPTS, SAMPLING, difference, parts, save

from sdscratch.diffusion import FlowSchedule, NoiseSchedule, PredictionType
from sdscratch.errors import CannotWriteError, DataError
from sdscratch.interop import compvis_keys
from sdscratch.interop.diffusers_folder import Model, load_model_folder, save_model_folder
from sdscratch.interop.single_file import (
    SCALING_FACTOR,
    SD1X_UNET,
    SD1X_VAE,
    clear_place,
    configs_beside,
    read_single_file,
    write_single_file,
)
from sdscratch.models import UNet
from sdscratch.models.unet_kinds import unet_from_config
from sdscratch.pipeline import TextToImage

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # inside diffusers

KINDS: dict[str, tuple[NoiseSchedule | FlowSchedule, PredictionType]] = {
    "epsilon": (NoiseSchedule(), "epsilon"),
    "v": (NoiseSchedule(), "v_prediction"),
    "v_zero_terminal_snr": (NoiseSchedule(rescale_zero_terminal_snr=True), "v_prediction"),
    "flow": (FlowSchedule(), "flow_prediction"),
}
ATTENTION = "first_stage_model.encoder.mid.attn_1.q.weight"


def model(kind: str = "epsilon") -> Model:
    """With attention in its VAE, whose weights have another shape there."""
    schedule, prediction_type = KINDS[kind]
    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 3, "up_block_types": ["UpDecoderBlock2D"] * 3}
    sizes = {"block_out_channels": [8, 8, 16], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    vae = AutoencoderKL(**levels, **sizes, scaling_factor=0.7)
    encoders = type(parts().encoders)(vae, parts().encoders.text)
    return Model(parts().unet, encoders, schedule, prediction_type, {"sampling": SAMPLING})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_single_file(tmp_path / "a.safetensors", model())
    return tmp_path / "a.safetensors"


def read(path: Path, **settings) -> Model:
    return read_single_file(load_file(path), str(path), configs=configs_beside(path), **settings)[0]


def folder_of(read_model: Model, folder: Path) -> Path:
    unet, encoders, schedule, prediction_type, about = read_model
    save_model_folder(
        folder,
        unet=unet,
        vae=encoders.vae,
        text=encoders.text,
        noise_schedule=schedule,
        prediction_type=prediction_type,
        about={"sampling": SAMPLING},
    )
    return folder


def test_names_of_sd1x_are_those_that_diffusers_reads():
    """diffusers' own reader, given each tensor's name for a tensor, finds every one where we say."""
    with torch.device("meta"):
        unet = unet_from_config(SD1X_UNET)
        vae = AutoencoderKL.from_config(SD1X_VAE)
    for names, convert, config in (
        (compvis_keys.unet_names(unet.state_dict(), unet.config), convert_ldm_unet_checkpoint, unet.config),
        (compvis_keys.vae_names(vae.state_dict(), 4), convert_ldm_vae_checkpoint, vae.config),
    ):
        assert len(set(names.values())) == len(names)
        found = convert({theirs: torch.tensor(i) for i, theirs in enumerate(names.values())}, config)
        assert {name: int(number) for name, number in found.items()} == {name: i for i, name in enumerate(names)}
    assert len(unet.state_dict()) == 686 and len(vae.state_dict()) == 248


def test_names_of_sd1x_are_those_of_its_published_files():
    with torch.device("meta"):
        unet = unet_from_config(SD1X_UNET)
    shapes = {
        theirs.removeprefix(compvis_keys.UNET): tuple(unet.state_dict()[ours].shape)
        for ours, theirs in compvis_keys.unet_names(unet.state_dict(), unet.config).items()
    }
    assert shapes["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"] == (320, 768)
    assert shapes["input_blocks.3.0.op.weight"] == (320, 320, 3, 3)
    assert shapes["input_blocks.4.0.skip_connection.weight"] == (640, 320, 1, 1)
    assert shapes["middle_block.1.proj_in.weight"] == (1280, 1280, 1, 1)
    assert shapes["output_blocks.2.1.conv.weight"] == (1280, 1280, 3, 3)  # no attention at the bottom
    assert shapes["output_blocks.5.2.conv.weight"] == (1280, 1280, 3, 3)
    assert shapes["output_blocks.11.0.emb_layers.1.weight"] == (320, 1280)
    assert shapes["out.2.weight"] == (4, 320, 3, 3) and shapes["time_embed.2.bias"] == (1280,)


def test_what_is_written_is_read_back(file):
    assert load_file(file)[ATTENTION].shape == (16, 16, 1, 1)
    ours, theirs = model(), read(file)
    for network in ("unet", "text"):
        expected, found = (m.unet if network == "unet" else m.encoders.text.model for m in (ours, theirs))
        for name, tensor in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor), name
    assert theirs.unet.config == ours.unet.config and not theirs.unet.training
    assert theirs[2:4] == ours[2:4]
    assert theirs.encoders.text(PROMPTS).equal(ours.encoders.text(PROMPTS))


def test_the_usual_scaling_factor_holds_of_the_file(file):
    ours, theirs = model().encoders, read(file).encoders
    assert theirs.vae.config.scaling_factor == SCALING_FACTOR
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    latents = ours.encode_images(images, noise)
    torch.testing.assert_close(theirs.encode_images(images, noise), latents, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(theirs.decode(latents), ours.decode(latents), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_the_folder_and_our_sampler_give_the_same_pictures(tmp_path, kind):
    """Of the model itself, of its file read by diffusers and by us: DDIM and Euler, flow with Euler."""
    ours = TextToImage.from_pretrained(folder_of(model(kind), tmp_path / "ours"), device="cpu")
    path = tmp_path / "a.safetensors"
    write_single_file(path, model(kind))
    single = StableDiffusionPipeline.from_single_file(path, config=str(configs_beside(path)), local_files_only=True)
    whole = StableDiffusionPipeline.from_pretrained(tmp_path / "ours", local_files_only=True)
    back = TextToImage.from_pretrained(folder_of(read(path), tmp_path / "back"), device="cpu")
    noise = ours.noise(len(PROMPTS), 32, seed=5)
    settings = {"num_inference_steps": 8, "guidance_scale": 4.0}
    schedulers = {"flow": {"euler": None}, "v_zero_terminal_snr": {"ddim": None, "euler": None}}
    for sampler, scheduler in schedulers.get(kind, {"ddim": DDIMScheduler, "euler": EulerDiscreteScheduler}).items():
        expected = ours(PROMPTS, latents=noise, sampler=sampler, **settings)
        assert difference(back(PROMPTS, latents=noise, sampler=sampler, **settings), expected) <= 2
        for theirs in (single, whole):
            theirs.set_progress_bar_config(disable=True)
            if scheduler is not None:  # else as it comes, which is Euler's method too
                theirs.scheduler = scheduler.from_config(theirs.scheduler.config, clip_sample=False)
            assert difference(expected, theirs(PROMPTS, latents=noise.clone(), **settings).images) <= 2


def test_markers_say_what_other_programs_would_have_to_be_told(tmp_path):
    for kind, marks in (("epsilon", set()), ("v", {"v_pred"}), ("v_zero_terminal_snr", {"v_pred", "ztsnr"})):
        write_single_file(tmp_path / f"{kind}.safetensors", model(kind))
        assert {"v_pred", "ztsnr"} & load_file(tmp_path / f"{kind}.safetensors").keys() == marks
    with pytest.raises(DataError, match="is marked v_pred, but the scheduler in"):
        read_single_file(load_file(tmp_path / "v.safetensors"), "v", configs=configs_beside(tmp_path / "epsilon.x"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_written_and_read_as_float32(tmp_path, dtype):
    path = tmp_path / "a.safetensors"
    write_single_file(path, model(), dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    found, expected = read(path).unet.state_dict(), model().unet.state_dict()
    assert all(torch.equal(found[name], tensor.to(dtype).float()) for name, tensor in expected.items())


def test_weights_too_large_for_a_dtype_are_refused(tmp_path):
    large = model()
    large.encoders.vae.decoder.conv_in.bias.data[0] = 1e6
    with pytest.raises(DataError, match="in torch.float16: first_stage_model.decoder.conv_in.bias is not finite"):
        write_single_file(tmp_path / "a.safetensors", large, torch.float16)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_training_with_an_average_gives_that_or_the_live_weights(file):
    """As CompVis' code saves them: schedules, and the average under names without dots."""
    live = load_file(file)
    prefix = "model."
    average = {
        "model_ema." + name.removeprefix(prefix).replace(".", ""): tensor + 1
        for name, tensor in live.items()
        if name.startswith(compvis_keys.UNET)
    }
    beside = {"betas": torch.zeros(3), "model_ema.decay": torch.tensor(0.9), "posterior_variance": torch.zeros(3)}
    content = {"state_dict": live | average | beside, "global_step": 3}
    for weights, offset in (("ema", 1), ("raw", 0)):
        found, left_out = read_single_file(content, "x", weights, configs_beside(file))
        expected = parts().unet.state_dict()["conv_in.weight"] + offset
        assert torch.equal(found.unet.state_dict()["conv_in.weight"], expected) and left_out == []


def test_older_names_and_shapes_are_read(file):
    """Text encoders without `text_model`, the VAE's attention as linear layers."""
    older = {name.replace(".text_model.", "."): tensor for name, tensor in load_file(file).items()}
    older[ATTENTION] = older[ATTENTION][:, :, 0, 0]
    found, _ = read_single_file(older, "x", configs=configs_beside(file))
    assert found.encoders.text(PROMPTS).equal(parts().encoders.text(PROMPTS))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.diffusion_model.out.2.bias": None}, "1 missing: model.diffusion_model.out.2.bias"),
        ({"first_stage_model.quant_conv.bias": None}, "1 missing: first_stage_model.quant_conv.bias"),
        (
            {compvis_keys.TEXT + "final_layer_norm.bias": None},
            "1 missing: cond_stage_model.transformer.text_model.final",
        ),
        ({"control_model.x": torch.zeros(3)}, "1 unexpected: control_model.x"),
        ({"model.diffusion_model.out.2.bias": torch.zeros(9)}, r"out.2.bias is \(9,\), expected \(4,\)"),
        ({"model.diffusion_model.out.2.bias": torch.full((4,), torch.inf)}, "out.2.bias is not finite"),
        ({"model.diffusion_model.out.2.bias": 3}, "out.2.bias is a int"),
    ],
)
def test_what_does_not_fit_is_named_as_the_file_names_it(file, change, said):
    content = {name: value for name, value in {**load_file(file), **change}.items() if value is not None}
    with pytest.raises(DataError, match=said) as caught:
        read_single_file(content, "a.ckpt", configs=configs_beside(file))
    assert str(caught.value).startswith("a.ckpt") and "\n" not in str(caught.value)


def test_a_partial_load_says_what_it_left_out(file):
    content = {**load_file(file), "control_model.x": torch.zeros(3)}
    del content["model.diffusion_model.out.2.bias"]
    found, left_out = read_single_file(content, "x", configs=configs_beside(file), partial=True)
    assert left_out == ["1 missing: model.diffusion_model.out.2.bias", "1 unexpected: control_model.x"]
    assert isinstance(found.unet, UNet)


def test_a_place_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CannotWriteError, match="Free some space"):
        write_single_file(tmp_path / "file" / "a.safetensors", model())


def test_the_folder_of_a_published_model_does_as_configs(tmp_path, file):
    """Whatever scaling_factor it has, files are read with the usual one."""
    folder = save(tmp_path / "published", NoiseSchedule(timestep_spacing="leading", steps_offset=1), "epsilon")
    save_file({"x": torch.zeros(1)}, folder / "unused.safetensors")
    plain = load_model_folder(folder)
    write_single_file(tmp_path / "b.safetensors", plain)
    found, _ = read_single_file(load_file(tmp_path / "b.safetensors"), "b", configs=folder)
    assert found.encoders.vae.config.scaling_factor == SCALING_FACTOR
    assert found.noise_schedule.timestep_spacing == "leading"


def test_there_are_no_configs_before_all_of_the_file_is_written(tmp_path, monkeypatch):
    """Killed while it is, it leaves nothing that would be in the way of the same command."""
    path, seen = tmp_path / "a.safetensors", list[tuple[str, bool]]()
    monkeypatch.setattr("sdscratch.files.crash_point", lambda name: seen.append((name, configs_beside(path).exists())))
    write_single_file(path, model())
    assert [found for found in seen if found[0].startswith("export:")] == [
        ("export:tmp", False),
        ("export:fsync", False),
        ("export:rename", True),
    ]


def test_what_an_export_has_left_that_was_killed_between_its_two_renames_is_cleared_away(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    path = tmp_path / "a.safetensors"
    configs_beside(path).mkdir()
    for half, stays in ((f".{path.name}.{os.getpid()}.tmp", True), (f".{path.name}.{dead.pid}.tmp", False)):
        clear_place(path)
        assert configs_beside(path).exists()  # somebody else's: there is nothing of a killed export
        (tmp_path / half).touch()
        clear_place(path)
        assert configs_beside(path).exists() == (tmp_path / half).exists() == stays


def test_a_file_or_its_configs_that_another_process_has_written_meanwhile_stay_and_are_named(tmp_path, file):
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CannotWriteError, match="a.safetensors: File exists"):
        write_single_file(file, model("flow"))
    file.rename(tmp_path / "b")
    with pytest.raises(CannotWriteError, match="a.configs: Directory not empty"):
        write_single_file(file, model("flow"))
    (tmp_path / "b").rename(file)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_page_that_cannot_be_written_is_said_of_the_configs_and_nothing_is_left(tmp_path):
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder / "README.md"))

    with pytest.raises(CannotWriteError, match="a.configs: Permission denied"):
        write_single_file(tmp_path / "a.safetensors", model(), more=refuse)
    assert not list(tmp_path.iterdir())

"""The released checkpoint's file: the right tensors of it, strictly, into a network of the right sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from released_files import content, write
from released_record import CONTEXT, HEADS, expected, recorded_inputs, recorded_weights
from safetensors.torch import save_file

from sdscratch.errors import ConfigError, DataError
from sdscratch.interop import load_released_checkpoint
from sdscratch.models import ReleasedUNet


def assert_answers(network: torch.nn.Module, weights: str) -> None:
    with torch.no_grad():
        torch.testing.assert_close(network(*recorded_inputs()), expected(weights), atol=1e-4, rtol=0)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_both_kinds_of_weights_give_the_original_networks_outputs(tmp_path, weights):
    network = load_released_checkpoint(write(tmp_path / "sd_epoch_042.pt"), weights=weights, heads=HEADS)
    assert_answers(network, weights)
    assert not network.training and {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert network.config["cross_attention_dim"] == CONTEXT and network.config["attention_levels"] == [1, 2, 3]


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "unet.", "unet._orig_mod.module.", "_fsdp_wrapped_module.unet.", "module.unet."]
)
def test_what_wrappers_have_put_before_names_is_taken_off(tmp_path, prefix):
    path = write(tmp_path / "a.pt", content(live_prefix=prefix, ema_prefix=prefix))
    for weights in ("ema", "raw"):
        assert_answers(load_released_checkpoint(path, weights=weights, heads=HEADS), weights)


@pytest.mark.parametrize("name", ["model_state_dict", "state_dict"])
def test_of_a_whole_models_tensors_those_of_the_unet_are_taken(tmp_path, name):
    whole = {"vae.encoder.weight": torch.zeros(3), "text_encoder.x": torch.zeros(3)}
    whole |= {f"unet.{key}": tensor for key, tensor in recorded_weights(ema=False).items()}
    assert_answers(load_released_checkpoint(write(tmp_path / "a.pt", {name: whole}), "raw", HEADS), "raw")


def test_tensors_alone_are_taken_for_what_is_asked_for_in_safetensors_too(tmp_path):
    weights = recorded_weights(ema=True)
    save_file(weights, tmp_path / "a.safetensors")
    for path in (tmp_path / "a.safetensors", write(tmp_path / "b.pt", weights)):
        assert_answers(load_released_checkpoint(path, heads=HEADS), "ema")


def damaged(name: str) -> dict:
    saved = content()
    live = saved["unet_state_dict"]
    if name == "missing":
        del live["mid.1.conv2.bias"]
    elif name == "unexpected":
        live["mid.1.conv9.bias"] = torch.zeros(3)
    elif name == "reshaped":
        live["ups.0.skip.weight"] = torch.zeros(3, 5)
    elif name == "no number":
        live["conv_in.bias"] = torch.full_like(live["conv_in.bias"], torch.nan)
    elif name == "no tensor":
        live["conv_in.bias"] = 3
    elif name == "sparse":
        live["conv_in.bias"] = live["conv_in.bias"].to_sparse()
    elif name == "twice":
        live["module.conv_in.bias"] = live["conv_in.bias"]
    elif name == "another network":
        saved["unet_state_dict"] = {"conv.weight": torch.zeros(3, 3)}
    elif name == "uneven":
        live["downs.11.conv1.weight"] = torch.zeros(64, 64, 3, 3)
    return saved


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("missing", "1 missing: mid.1.conv2.bias. partial=true takes what does"),
        ("unexpected", "1 unexpected: mid.1.conv9.bias"),
        ("reshaped", r"ups.0.skip.weight is \(3, 5\), expected \(64, 128, 1, 1\)"),
        ("no number", "conv_in.bias is not finite"),
        ("no tensor", "conv_in.bias is a int, expected a dense tensor"),
        ("sparse", "conv_in.bias is a Tensor, expected a dense tensor"),
        ("twice", "conv_in.bias more than once"),
        ("another network", "holds no released network: conv_in.weight is missing"),
        ("uneven", "its levels have"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(tmp_path, name, said):
    path = write(tmp_path / "a.pt", damaged(name))
    with pytest.raises(DataError, match=said) as caught:
        load_released_checkpoint(path, weights="raw", heads=HEADS)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_a_partial_load_takes_what_fits_and_needs_the_flag(tmp_path):
    path = write(tmp_path / "a.pt", damaged("missing"))
    network = load_released_checkpoint(path, "raw", HEADS, partial=True)
    whole = recorded_weights(ema=False)
    assert torch.equal(network.state_dict()["conv_in.weight"], whole["conv_in.weight"])
    assert not network.state_dict()["mid.1.conv2.bias"].any()  # as a new network has it


def test_no_average_is_made_up(tmp_path):
    saved = content()
    del saved["ema_state_dict"]
    with pytest.raises(DataError, match="holds no average .ema_state_dict.: set weights=raw"):
        load_released_checkpoint(write(tmp_path / "a.pt", saved), heads=HEADS)
    with pytest.raises(DataError, match="holds no shadow"):
        load_released_checkpoint(write(tmp_path / "a.pt", {**saved, "ema_state_dict": {}}), heads=HEADS)


@pytest.mark.parametrize("settings", [{"heads": 7}, {"heads": 0}, {"weights": "both"}])
def test_settings_that_cannot_be_are_refused(tmp_path, settings):
    with pytest.raises(ConfigError):
        load_released_checkpoint(write(tmp_path / "a.pt"), **{"heads": HEADS, **settings})


class Gadget:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_that_runs_code_or_is_none_is_refused_in_one_line(tmp_path):
    write(tmp_path / "evil.pt", {**content(), "epoch": Gadget(tmp_path / "canary")})
    (tmp_path / "cut.pt").write_bytes(write(tmp_path / "a.pt").read_bytes()[:9999])
    (tmp_path / "cut.safetensors").write_bytes(b"\x00" * 50)
    (tmp_path / "empty.pt").touch()
    torch.save([1, 2], tmp_path / "list.pt")
    for name in ("evil.pt", "cut.pt", "cut.safetensors", "empty.pt", "list.pt", "nowhere.pt"):
        with pytest.raises(DataError, match=name) as caught:
            load_released_checkpoint(tmp_path / name, heads=HEADS)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "canary").exists()


def test_a_legacy_file_of_torch_is_read(tmp_path):
    torch.save(content(), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert isinstance(load_released_checkpoint(tmp_path / "old.pt", heads=HEADS), ReleasedUNet)

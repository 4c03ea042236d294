"""Our UNet is diffusers' UNet2DConditionModel: the same weights, the same arithmetic, less of everything else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.bench.work import WAITS, Kernels
from sdscratch.errors import ConfigError
from sdscratch.models import UNet
from sdscratch.models.blocks import Attention, Text, Upsample

FILLING_UP = {"new_zeros": 1, "constant_pad_nd": 2}
"""Kernels that a CPU takes to fill a text up to whole vectors."""

CONF = Path(__file__).parents[2] / "conf"
DOWN, ATTN_DOWN, UP, ATTN_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"

TINY = {
    "block_out_channels": (16, 32),
    "down_block_types": (ATTN_DOWN, DOWN),
    "up_block_types": (UP, ATTN_UP),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "cross_attention_dim": 12,
    "attention_head_dim": 2,
}
SHAPES: dict[str, dict[str, Any]] = {
    "as_sd1": {},
    "heads_of_fixed_width": {
        "down_block_types": (ATTN_DOWN, ATTN_DOWN),
        "up_block_types": (ATTN_UP, ATTN_UP),
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "in_channels": 5,
        "out_channels": 3,
    },
    "attention_below_only": {
        "block_out_channels": (8, 24, 16),
        "down_block_types": (DOWN, DOWN, ATTN_DOWN),
        "up_block_types": (ATTN_UP, UP, UP),
        "layers_per_block": 2,
        "attention_head_dim": (1, 3, 4),
        "norm_eps": 1e-3,
    },
    "attention_differs_on_the_way_up": {
        "block_out_channels": (24, 12, 12, 8),
        "down_block_types": (ATTN_DOWN, DOWN, ATTN_DOWN, DOWN),
        "up_block_types": (ATTN_UP, UP, UP, UP),
    },
    "attention_in_the_middle_only": {"down_block_types": (DOWN, DOWN), "up_block_types": (UP, UP)},
    "one_level": {"block_out_channels": (15,), "down_block_types": (ATTN_DOWN,), "up_block_types": (ATTN_UP,)}
    | {"norm_num_groups": 3, "attention_head_dim": 5},
    "heads_that_do_not_divide": {"attention_head_dim": 5},
    "other_sinusoid": {"flip_sin_to_cos": False, "freq_shift": 1},
}


def twins(dtype: torch.dtype = torch.float32, **overrides: Any) -> tuple[UNet, UNet2DConditionModel]:
    """Ours and diffusers', with the same weights, none of which is at a special value such as a norm's 1 and 0."""
    torch.manual_seed(0)
    theirs = UNet2DConditionModel(**(TINY | overrides)).to(dtype)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    ours = UNet.from_config(dict(theirs.config)).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def inputs(unet: UNet, size: tuple[int, int] = (8, 8), batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    dtype = unet.conv_in.weight.dtype
    latents = torch.randn(batch, unet.config["in_channels"], *size, generator=generator, dtype=dtype)
    text = torch.randn(batch, 7, unet.config["cross_attention_dim"], generator=generator, dtype=dtype)
    return latents, torch.randint(0, 1000, (batch,), generator=generator), text


def gradients(unet: nn.Module, output: Tensor) -> dict[str, Tensor]:
    cotangent = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=output.dtype)
    names, parameters = zip(*unet.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad((output * cotangent).sum(), parameters), strict=True))


def assert_gradients_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    largest = max(g.abs().max() for g in theirs.values())
    # Some are all rounding: attention within a map of one pixel has none, and what feeds it next to none.
    scales = {name: g.abs().max().clamp(min=largest / 20) for name, g in theirs.items()}
    errors = {name: ((ours[name] - g).abs().max() / scales[name]).item() for name, g in theirs.items()}
    assert max(errors.values()) < tolerance, max(errors.items(), key=lambda item: item[1])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=["f64", "f32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_outputs_and_all_gradients_equal_diffusers(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    ours, theirs = twins(dtype, **SHAPES[shape])
    latents, timesteps, text = inputs(ours)
    found, expected = ours(latents, timesteps, text), theirs(latents, timesteps, text).sample
    assert (found - expected).abs().max() < tolerance
    assert_gradients_equal(gradients(ours, found), gradients(theirs, expected), tolerance)


@pytest.mark.parametrize("size", [(7, 5), (9, 12), (3, 16)])
def test_sizes_that_do_not_halve_evenly_equal_diffusers(size: tuple[int, int]) -> None:
    ours, theirs = twins(torch.float64, **SHAPES["attention_below_only"])
    latents, timesteps, text = inputs(ours, size)
    torch.testing.assert_close(
        ours(latents, timesteps, text), theirs(latents, timesteps, text).sample, atol=1e-9, rtol=0
    )


@pytest.mark.parametrize(
    "timesteps",
    [7, 999.0, 123.456, torch.tensor(7), torch.tensor(0.25), torch.tensor([7]), torch.tensor([3.5, 998.7])]
    + [torch.tensor([0, 999]), torch.tensor([0.1, 1.0], dtype=torch.float64)],
    ids=repr,
)
def test_timesteps_may_be_one_or_many_and_whole_or_fractional(timesteps: Tensor | float) -> None:
    ours, theirs = twins(torch.float64)
    latents, _, text = inputs(ours)
    found, expected = ours(latents, timesteps, text), theirs(latents, timesteps, text).sample
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_the_timestep_changes_the_output() -> None:
    ours, _ = twins()
    latents, _, text = inputs(ours)
    assert (ours(latents, 500, text) - ours(latents, 500.5, text)).abs().max() > 1e-4


def test_a_seed_draws_the_same_first_weights_as_diffusers() -> None:
    torch.manual_seed(3)
    theirs = UNet2DConditionModel(**TINY)
    torch.manual_seed(3)
    ours = UNet(**TINY)
    torch.testing.assert_close(ours.state_dict(), dict(theirs.state_dict()), atol=0, rtol=0)


def test_full_size_has_the_parameters_and_work_of_stable_diffusion() -> None:
    unet = shipped("unet_sd1x", device="meta")
    assert sum(parameter.numel() for parameter in unet.parameters()) == 859_520_964
    latents, text = torch.empty(1, 4, 64, 64, device="meta"), torch.empty(1, 77, 768, device="meta")
    with FlopCounterMode(display=False) as counter:
        unet(latents, torch.empty(1, device="meta"), text)
    assert counter.get_total_flops() / 1e12 == pytest.approx(0.8033, abs=5e-5)


@pytest.mark.parametrize("model", ["unet_sd1x", "unet_sd1x_hd64"])
def test_full_size_has_the_keys_and_shapes_of_diffusers(model: str) -> None:
    ours = shipped(model, device="meta")
    with torch.device("meta"):
        theirs = UNet2DConditionModel.from_config(ours.config)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


def test_every_head_of_hd64_is_64_wide() -> None:
    unet = shipped("unet_sd1x_hd64", device="meta")
    attentions = [module for module in unet.modules() if isinstance(module, Attention)]
    assert {module.to_q.out_features / module.num_heads for module in attentions} == {64}


def test_the_tiny_network_is_tiny() -> None:
    unet = shipped("unet_tiny", device="cpu")
    assert sum(parameter.numel() for parameter in unet.parameters()) < 1_000_000
    assert unet(*inputs(unet)).shape == (2, 4, 8, 8)


def shipped(model: str, device: str) -> UNet:
    with initialize_config_dir(str(CONF), version_base="1.3"), torch.device(device):
        return instantiate(compose(overrides=[f"+model={model}"])).model


def test_the_config_passes_both_ways() -> None:
    ours, _ = twins(**SHAPES["heads_of_fixed_width"], sample_size=8)
    config = json.loads(json.dumps(ours.config))
    assert UNet.from_config(config).config == ours.config == config
    theirs = UNet2DConditionModel.from_config(config)
    theirs.load_state_dict(ours.state_dict())
    assert UNet.from_config(dict(theirs.config)).config == ours.config


def test_a_config_as_published_is_understood() -> None:
    published = {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "_name_or_path": "somewhere/unet",
        "act_fn": "silu",
        "attention_head_dim": 8,
        "block_out_channels": [320, 640, 1280, 1280],
        "center_input_sample": False,
        "cross_attention_dim": 768,
        "down_block_types": [ATTN_DOWN, ATTN_DOWN, ATTN_DOWN, DOWN],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": 4,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": 32,
        "out_channels": 4,
        "sample_size": 64,
        "up_block_types": [UP, ATTN_UP, ATTN_UP, ATTN_UP],
    }
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in UNet.from_config(published).parameters()) == 859_520_964


def test_num_attention_heads_is_meant_where_it_is_set() -> None:
    assert UNet.from_config(TINY | {"num_attention_heads": [1, 4]}).config["attention_head_dim"] == [1, 4]


def test_a_list_that_says_the_same_of_every_level_is_neutral() -> None:
    lists = {"layers_per_block": [1, 1], "cross_attention_dim": [12, 12]}
    lists |= {"only_cross_attention": [False, False], "transformer_layers_per_block": [1, 1]}
    assert UNet.from_config(TINY | lists).config == UNet(**TINY).config


REFUSED: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "act_fn": "gelu",
    "addition_embed_type": "text_time",
    "attention_head_dim": (2, 2, 4),
    "attention_type": "gated",
    "block_out_channels": (16, 30),
    "center_input_sample": True,
    "class_embed_type": "timestep",
    "class_embeddings_concat": True,
    "conv_in_kernel": 5,
    "conv_out_kernel": 1,
    "cross_attention_dim": (12, 16),
    "cross_attention_norm": "layer_norm",
    "down_block_types": (ATTN_DOWN, "AttnDownBlock2D"),
    "downsample_padding": 0,
    "dropout": 0.1,
    "dual_cross_attention": True,
    "encoder_hid_dim": 32,
    "layers_per_block": (1, 2),
    "mid_block_scale_factor": 1.4,
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "norm_num_groups": None,
    "num_class_embeds": 10,
    "only_cross_attention": (True, False),
    "resnet_time_scale_shift": "scale_shift",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 1.4,
    "time_cond_proj_dim": 16,
    "time_embedding_dim": 16,
    "time_embedding_type": "fourier",
    "timestep_post_act": "silu",
    "transformer_layers_per_block": (1, 2),
    "up_block_types": (UP,),
    "upcast_attention": True,
    "upsample_padding": 1,
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_the_network_cannot_do_is_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"\n  {key} is .*(expected|remove)"):
        UNet.from_config(TINY | {key: REFUSED[key]})


def test_all_refusals_come_at_once() -> None:
    with pytest.raises(ConfigError) as refusal:
        UNet.from_config(TINY | REFUSED | {"norm_num_groups": 5})
    assert [key for key in REFUSED.keys() - {"norm_num_groups"} if f"\n  {key} is " not in str(refusal.value)] == []


def test_every_key_of_diffusers_is_known() -> None:
    """When a new diffusers brings a key, its default must be accepted: this fails until somebody has looked at it."""
    assert UNet.from_config(dict(UNet2DConditionModel(**TINY).config)).config == UNet(**TINY).config


def test_arguments_that_do_not_fit_together_are_refused_by_the_constructor_too() -> None:
    with pytest.raises(
        ConfigError, match=r"block_out_channels is \(16, 30\), expected multiples of norm_num_groups \(4\)"
    ):
        UNet(**TINY | {"block_out_channels": (16, 30)})


def test_more_heads_than_channels_are_refused_where_there_is_attention_only() -> None:
    UNet(**TINY | {"down_block_types": (DOWN, DOWN), "up_block_types": (UP, UP), "attention_head_dim": (99, 4)})
    with pytest.raises(ConfigError, match="99 heads on 16 channels"):
        UNet(**TINY | {"attention_head_dim": (99, 4)})


def test_a_text_that_was_read_before_gives_the_same_answer_for_less_work() -> None:
    unet, _ = twins()
    latents, timesteps, text = inputs(unet)
    work = []
    with torch.no_grad():
        read = unet.read(text)
        answers = []
        for given in (text, read):
            with Kernels() as kernels:
                answers.append(unet(latents, timesteps, given))
            work.append(kernels.ran)
    torch.testing.assert_close(*answers, atol=0, rtol=0)
    assert work[0] - work[1] == {"mm": 2 * 4, **FILLING_UP} and not work[1] - work[0]


@pytest.mark.parametrize("shape", SHAPES)
@torch.no_grad()
def test_several_texts_for_each_picture_are_answered_together_for_less_work(shape) -> None:
    """As for a prompt and a negative one: what comes before the first look at a text is computed once."""
    unet, _ = twins(**SHAPES[shape])
    latents, timesteps, text = inputs(unet)
    texts = torch.cat([text, -text])
    with Kernels() as apart:
        expected = unet(torch.cat([latents] * 2), torch.cat([timesteps] * 2), texts)
    with Kernels() as together:
        found = unet(latents, timesteps, texts)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert together.bytes_touched < apart.bytes_touched


@pytest.mark.parametrize(("pictures", "texts"), [(4, 1), (4, 2), (2, 3), (0, 2)])
def test_texts_that_do_not_fit_the_pictures_are_refused(pictures, texts) -> None:
    unet, _ = twins()
    latents, timesteps, text = inputs(unet)
    with pytest.raises(ConfigError, match=f"{texts} texts for {pictures} pictures: expected as many for each"):
        unet(latents[:1].expand(pictures, -1, -1, -1), 1, text[:1].expand(texts, -1, -1))


def test_a_text_that_is_filled_up_to_whole_vectors_says_the_same() -> None:
    unet, _ = twins(torch.float64)
    latents, timesteps, states = inputs(unet)
    text = Text.of(states)
    assert text.states.shape == (2, 16, 12) and text.mask is not None
    assert text.mask.isinf().tolist() == [[False] * 7 + [True] * 9]
    found, expected = unet(latents, timesteps, text), unet(latents, timesteps, Text(states))
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    assert_gradients_equal(gradients(unet, found), gradients(unet, expected), 1e-12)


@pytest.mark.parametrize(
    "states", [torch.zeros(1, 32, 4), torch.zeros(1, 7, 4).bfloat16(), torch.zeros(1, 7, 4).to("meta")]
)
def test_whole_vectors_half_precision_and_what_is_not_on_a_cpu_are_taken_as_they_are(states: Tensor) -> None:
    assert Text.of(states).states is states and Text.of(states).mask is None


@pytest.mark.parametrize("autocast", [False, True])
def test_enlarging_again_in_the_backward_pass_changes_no_gradient(autocast: bool) -> None:
    torch.manual_seed(0)
    layer, pixels = Upsample(6), torch.randn(2, 6, 4, 5, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        results = [layer(pixels, (8, 9)), layer.conv(F.interpolate(pixels, size=(8, 9), mode="nearest"))]
    torch.testing.assert_close(*results, atol=0, rtol=0)
    cotangent = torch.randn_like(results[0])
    found, expected = (torch.autograd.grad(result, [pixels, *layer.parameters()], cotangent) for result in results)
    assert [gradient.dtype for gradient in found] == [torch.float32] * 3
    torch.testing.assert_close(found, expected, atol=1e-2 if autocast else 1e-5, rtol=1e-2 if autocast else 1e-5)


def test_gradient_checkpointing_changes_no_gradient_and_keeps_less() -> None:
    plain, _ = twins(torch.float64)
    frugal = UNet.from_config(plain.config, gradient_checkpointing=True).double()
    frugal.load_state_dict(plain.state_dict())
    (kept, expected), (kept_less, found) = kept_and_gradients(plain), kept_and_gradients(frugal)
    assert_gradients_equal(found, expected, 1e-12)
    assert kept_less < kept / 2


def kept_and_gradients(unet: UNet) -> tuple[int, dict[str, Tensor]]:
    """Bytes that the forward pass keeps for the backward pass, and the gradients."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = unet(*inputs(unet))
    return sum(kept.values()), gradients(unet, output)


@pytest.mark.parametrize(("checkpointing", "size", "scalar"), [(False, (7, 5), False), (True, (8, 8), True)])
def test_one_graph_holds_the_whole_network(checkpointing: bool, size: tuple[int, int], scalar: bool) -> None:
    unet = UNet(**TINY, gradient_checkpointing=checkpointing)
    latents, timesteps, text = inputs(unet, size)
    given = 999.0 if scalar else timesteps
    found = torch.compile(unet, backend="eager", fullgraph=True, dynamic=False)(latents, given, text)
    expected = unet(latents, given, text)
    torch.testing.assert_close(found, expected)
    assert_gradients_equal(gradients(unet, found), gradients(unet, expected), 1e-5)


def test_channels_last_goes_in_and_out_and_changes_nothing() -> None:
    unet, _ = twins(torch.float64)
    latents, timesteps, text = inputs(unet)
    expected = unet(latents, timesteps, text)
    unet.to(memory_format=torch.channels_last)
    found = unet(latents.to(memory_format=torch.channels_last), timesteps, text)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_sampling_runs_fewer_kernels_than_diffusers_joins_weights_and_waits_for_nothing(
    memory_format: torch.memory_format,
) -> None:
    ours, theirs = (unet.to(memory_format=memory_format) for unet in twins())
    latents, timesteps, text = inputs(ours)
    latents = latents.to(memory_format=memory_format)
    with torch.no_grad(), Kernels() as lean:
        ours(latents, timesteps, text)
    with torch.no_grad(), Kernels() as full:
        theirs(latents, timesteps, text)
    assert (lean.ran - full.ran).keys() <= {"cat", *FILLING_UP}
    assert lean.ran.total() < 0.9 * full.ran.total()
    assert lean.ran["clone"] == (4 if memory_format == torch.contiguous_format else 0), "one per transformer block"
    assert lean.ran.keys().isdisjoint({"copy_", *WAITS})

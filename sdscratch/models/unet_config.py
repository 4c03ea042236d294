"""Which configs of diffusers' `UNet2DConditionModel` our UNet can be, and why the others are refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdscratch.errors import ConfigError

# diffusers' switches for other networks (SDXL, Kandinsky, GLIGEN, ...), each with the values that leave SD1's as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None,),
    "addition_time_embed_dim": (None,),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dropout": (0,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (None,),
    "only_cross_attention": (False,),
    "projection_class_embeddings_input_dim": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
    "transformer_layers_per_block": (1,),
    "upcast_attention": (False,),
}
IGNORED = {"addition_embed_type_num_heads"}  # says nothing while addition_embed_type is None
MOST_LAYERS = 100  # more would be built for hours before the weights are found not to fit
UNIFORM = {"cross_attention_dim", "layers_per_block", "only_cross_attention", "transformer_layers_per_block"}


def read_config(config: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """diffusers' config dict -> the arguments of our constructor, whose names and defaults are `defaults`.

    Raises ConfigError that names every key which our UNet does not have or cannot honour.
    """
    found = {key: _one_for_all_levels(value) if key in UNIFORM else value for key, value in config.items()}
    # SD1's attention_head_dim is a number of heads; the key that says so is newer, and where it is set it is meant.
    heads = found.pop("num_attention_heads", None)
    if heads is not None:
        found["attention_head_dim"] = heads

    problems = []
    for key, value in found.items():
        if key in NEUTRAL:
            if value not in NEUTRAL[key]:
                problems.append(_expected(found, key, " or ".join(map(repr, NEUTRAL[key]))))
        elif key not in defaults and key not in IGNORED and not key.startswith("_"):
            problems.append(f"{key} is {value!r}, but diffusers' UNet2DConditionModel has no such key: remove it")
    arguments = {key: found.get(key, default) for key, default in defaults.items()}
    refuse([*problems, *misfits(arguments)])
    return arguments


def misfits(arguments: Mapping[str, Any]) -> list[str]:
    """What in the constructor's arguments does not fit together, one line each; empty when a network can be built."""
    counts = ("in_channels", "out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups")
    problems = [
        _expected(arguments, key, "a whole number of at least 1") for key in counts if not _is_count(arguments[key])
    ]
    if _is_count(arguments["layers_per_block"]) and arguments["layers_per_block"] > MOST_LAYERS:
        problems.append(_expected(arguments, "layers_per_block", f"at most {MOST_LAYERS}"))
    channels = list(arguments["block_out_channels"])
    for key, kinds in (
        ("down_block_types", ["CrossAttnDownBlock2D", "DownBlock2D"]),
        ("up_block_types", ["CrossAttnUpBlock2D", "UpBlock2D"]),
    ):
        types = list(arguments[key])
        if len(types) != len(channels) or not set(types) <= set(kinds):
            wanted = f"{' or '.join(kinds)} for each of the {len(channels)} levels of block_out_channels"
            problems.append(_expected(arguments, key, wanted))

    groups = arguments["norm_num_groups"]
    if not channels or not all(_is_count(c) and (not _is_count(groups) or c % groups == 0) for c in channels):
        problems.append(_expected(arguments, "block_out_channels", f"multiples of norm_num_groups ({groups})"))
    heads = per_level(arguments["attention_head_dim"], len(channels))
    if len(heads) != len(channels) or not all(map(_is_count, heads)):
        problems.append(_expected(arguments, "attention_head_dim", "a number of heads, or a list of one per level"))
    return problems


def refuse(problems: list[str]) -> None:
    """Raise ConfigError with all the problems, if there are any."""
    if problems:
        raise ConfigError("\n  ".join(["no UNet of ours can be built from this config:", *problems]))


def per_level(value: Any, levels: int) -> list[Any]:
    """One value for all levels, or a list of one for each -> a list."""
    return [value] * levels if value is None or isinstance(value, int | float) else list(value)


def _one_for_all_levels(value: Any) -> Any:
    """A list that says the same of every level says it once."""
    return value[0] if isinstance(value, list | tuple) and value and all(v == value[0] for v in value) else value


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _expected(config: Mapping[str, Any], key: str, wanted: str) -> str:
    return f"{key} is {config[key]!r}, expected {wanted}"

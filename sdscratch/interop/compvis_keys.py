"""What the tensors of a Stable Diffusion 1.x model are called in a single file, which has the names of CompVis' code.

Each table gives, for the names that our network has (diffusers' names), theirs. Reading uses the same tables, so nothing can
be written that is not read back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer.text_model."

UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ENDS = {
    "conv_norm_out": "norm_out",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.attentions.0": "mid.attn_1",
    "mid_block.resnets.1": "mid.block_2",
}
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_names(names: Iterable[str], config: Mapping[str, Any]) -> dict[str, str]:
    """Of the UNet that `config` describes. Blocks are counted through all levels there, and level by level here."""
    places = dict(UNET_ENDS)
    per_level, levels = config["layers_per_block"] + 1, len(config["block_out_channels"])
    for level in range(levels):
        first = 1 + level * per_level
        for layer in range(per_level - 1):
            places[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{first + layer}.0"
            places[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{first + layer}.1"
        places[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{first + per_level - 1}.0.op"

        first = level * per_level
        for layer in range(per_level):
            places[f"up_blocks.{level}.resnets.{layer}"] = f"output_blocks.{first + layer}.0"
            places[f"up_blocks.{level}.attentions.{layer}"] = f"output_blocks.{first + layer}.1"
        attends = config["up_block_types"][level] == "CrossAttnUpBlock2D"
        last = f"output_blocks.{first + per_level - 1}"
        places[f"up_blocks.{level}.upsamplers.0.conv"] = f"{last}.{2 if attends else 1}.conv"
    return {name: UNET + _renamed(name, places, {".resnets.": UNET_RESNET}) for name in names}


def vae_names(names: Iterable[str], levels: int) -> dict[str, str]:
    """Of an AutoencoderKL with so many levels. Its decoder counts them from the bottom here, and from the top there."""
    places = {
        f"{half}.{ours}": f"{half}.{theirs}" for half in ("encoder", "decoder") for ours, theirs in VAE_ENDS.items()
    }
    for level in range(levels):
        there = levels - 1 - level
        places[f"encoder.down_blocks.{level}.resnets"] = f"encoder.down.{level}.block"
        places[f"encoder.down_blocks.{level}.downsamplers.0.conv"] = f"encoder.down.{level}.downsample.conv"
        places[f"decoder.up_blocks.{level}.resnets"] = f"decoder.up.{there}.block"
        places[f"decoder.up_blocks.{level}.upsamplers.0.conv"] = f"decoder.up.{there}.upsample.conv"
    inner = {".resnets.": VAE_RESNET, ".attentions.": VAE_ATTENTION}
    return {name: VAE + _renamed(name, places, inner) for name in names}


def text_names(names: Iterable[str]) -> dict[str, str]:
    """Of a CLIP text tower, whose names are nearly the same."""
    return {name: TEXT + name.removeprefix("text_model.") for name in names}


def average_name(name: str) -> str:
    """Where a file of training keeps the average of one of the UNet's tensors, which goes by `name` there."""
    return "model_ema." + name.removeprefix("model.").replace(".", "")


def _renamed(name: str, places: Mapping[str, str], inner: Mapping[str, Mapping[str, str]]) -> str:
    """The longest beginning that is a place, as that place is called; then, within such blocks as `inner` tells, the rest."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (place := places.get(".".join(parts[:length]))) is not None:
            rest = ".".join(parts[length:])
            for kind, names in inner.items():
                if kind in name:
                    rest = _rest(rest, names)
            return f"{place}.{rest}" if rest else place
    return name


def _rest(rest: str, names: Mapping[str, str]) -> str:
    for ours, theirs in names.items():
        before, found, after = f".{rest}".partition(f".{ours}.")
        if found:
            return f"{before}.{theirs}.{after}".removeprefix(".")
    return rest

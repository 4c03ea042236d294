"""The released checkpoint `sd_epoch_042.pt` and its kin: which tensors it holds, and which network they are of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sdscratch.errors import DataError, check_choice, check_whole
from sdscratch.interop.weight_files import fill, read_weight_file, tensors_of
from sdscratch.models.released_unet import ReleasedUNet

Weights = Literal["ema", "raw"]

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What programs that wrap a network put between the names of its parts."""

LIVE = ("unet_state_dict", "model_state_dict", "state_dict")


def load_released_checkpoint(
    path: str | Path, weights: Weights = "ema", heads: int = 8, partial: bool = False
) -> ReleasedUNet:
    """The network of a released checkpoint, in eval mode and float32: (latents, timesteps, encoder_hidden_states) -> noise.

    path: a file of torch.save, or of safetensors with the network's own names. weights: the average, or the live ones; a
    file of tensors alone does not say which they are, and is taken for either. heads: of every attention; all other sizes
    are read off the shapes. partial: leave out what does not fit, and leave at its random start what is missing.
    Raises DataError where the file is damaged or holds another network, ConfigError for settings that cannot be.
    """
    return released_unet(read_weight_file(Path(path)), str(path), weights, heads, partial)[0]


def released_unet(
    content: Mapping[str, Any], where: str, weights: Weights = "ema", heads: int = 8, partial: bool = False
) -> tuple[ReleasedUNet, list[str]]:
    """The same of what is in the file, and what of it was left out (nothing, unless `partial`). where: how messages begin."""
    check_choice("weights", weights, ("ema", "raw"))
    check_whole("heads", heads)
    tensors = _chosen(content, where, weights)
    network = ReleasedUNet(**_sizes(tensors, where), num_attention_heads=heads)
    left_out = fill(network, tensors, where, partial)
    return network.eval(), left_out


def is_released(content: Mapping[str, Any]) -> bool:
    """Whether a file's content looks like this kind."""
    if any(
        isinstance(content.get(name), Mapping) for name in ("unet_state_dict", "ema_state_dict", "model_state_dict")
    ):
        return True
    inner = content.get("state_dict", content)
    names = {_bare(name) for name in inner if isinstance(name, str)} if isinstance(inner, Mapping) else set()
    return {"t_emb.0.weight", "downs.0.conv1.weight"} <= names


def _chosen(content: Mapping[str, Any], where: str, weights: Weights) -> dict[str, Tensor]:
    """Tensors by the network's own names. Raises DataError where the file has none of the kind that is asked for."""
    if weights == "ema" and "ema_state_dict" in content:
        average = content["ema_state_dict"]
        if not isinstance(average, Mapping) or "shadow" not in average:
            raise DataError(f"{where}: ema_state_dict holds no shadow. Try weights=raw")
        return _of_the_unet(tensors_of(average["shadow"], f"{where}: the shadow of ema_state_dict"), where)
    live = next((name for name in LIVE if name in content), None)
    if live is not None:
        if weights == "ema":
            raise DataError(f"{where} holds no average (ema_state_dict): set weights=raw for the weights of {live}")
        return _of_the_unet(tensors_of(content[live], f"{where}: {live}"), where)
    return _of_the_unet(tensors_of(content, where), where)


def _of_the_unet(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Without wrappers' names; of a whole model's tensors only those below `unet.`."""
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        bare = _without_wrappers(name)
        if bare in plain:
            raise DataError(f"{where} holds {bare} more than once, as {name} and under another prefix")
        plain[bare] = tensor
    if any(name.startswith("unet.") for name in plain):
        plain = {name.removeprefix("unet."): tensor for name, tensor in plain.items() if name.startswith("unet.")}
    return plain


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _bare(name: str) -> str:
    return _without_wrappers(name).removeprefix("unet.")


def _sizes(tensors: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The arguments of ReleasedUNet that shapes tell: all but the number of heads."""

    def shape(name: str, dimensions: int) -> tuple[int, ...]:
        if name not in tensors or tensors[name].ndim != dimensions:
            found = "is missing" if name not in tensors else f"has the shape {tuple(tensors[name].shape)}"
            raise DataError(f"{where} holds no released network: {name} {found}")
        return tuple(tensors[name].shape)

    in_channels = shape("conv_in.weight", 4)[1]
    out_channels = shape("conv_out.weight", 4)[0]
    cross_attention_dim = shape("mid.0.tfm.tfm.cross_attn.to_k.weight", 2)[1]
    layers = [int(found[1]) for name in tensors if (found := re.match(r"downs\.(\d{1,3})\.", name))]
    levels: list[list[int]] = [[]]  # the numbers of each one's residual blocks; a lone convolution lies between levels
    for i in range(max(layers, default=-1) + 1):
        if f"downs.{i}.weight" in tensors:
            levels.append([])
        else:
            levels[-1].append(i)
    counts = {len(blocks) for blocks in levels}
    if len(counts) != 1 or 0 in counts:
        raise DataError(
            f"{where} holds no released network: its levels have {sorted(counts)} blocks, expected as many each"
        )
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": [shape(f"downs.{blocks[0]}.conv1.weight", 4)[0] for blocks in levels],
        "layers_per_block": counts.pop(),
        "attention_levels": [
            level for level, blocks in enumerate(levels) if f"downs.{blocks[0]}.tfm.norm.weight" in tensors
        ],
        "cross_attention_dim": cross_attention_dim,
    }

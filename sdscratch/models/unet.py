"""The denoising network of Stable Diffusion 1.x, at any size."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdscratch.models.blocks import (
    Downsample,
    ResBlock,
    SpatialTransformer,
    Text,
    TimestepEmbedding,
    TransformerBlock,
    Upsample,
    for_each_text,
    timestep_sinusoid,
)
from sdscratch.models.unet_config import misfits, per_level, read_config, refuse


class Stage(nn.Module):
    """The layers at one resolution: residual blocks, each followed by attention where the stage has it."""

    def __init__(self) -> None:
        super().__init__()
        self.resnets = nn.ModuleList()
        self.attentions = nn.ModuleList()
        self.gradient_checkpointing = False

    def add(self, resnet: ResBlock, attention: SpatialTransformer | None = None) -> None:
        """Append a layer; once one comes without attention, so must all that follow."""
        self.resnets.append(resnet)
        if attention is not None:
            self.attentions.append(attention)

    def run_layer(self, i: int, hidden_states: Tensor, skip: Tensor | None, time: Tensor, text: Text) -> Tensor:
        """Layer `i`. Under gradient checkpointing only its inputs are kept, and the backward pass runs it again."""
        inputs = i, hidden_states, skip, time, text
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self._layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return self._layer(*inputs)

    def _layer(self, i: int, hidden_states: Tensor, skip: Tensor | None, time: Tensor, text: Text) -> Tensor:
        count = len(hidden_states)
        if skip is not None:
            hidden_states = torch.cat([hidden_states, for_each_text(skip, count)], dim=1)
        hidden_states = self.resnets[i](hidden_states, time if len(time) == count else time[:count])
        return self.attentions[i](hidden_states, text) if i < len(self.attentions) else hidden_states


class DownStage(Stage):
    """Layers, then half the resolution; every result is returned, because the way up reads each of them once."""

    def __init__(self) -> None:
        super().__init__()
        self.downsamplers = nn.ModuleList()

    def forward(self, hidden_states: Tensor, time: Tensor, text: Text) -> list[Tensor]:
        results = []
        for i in range(len(self.resnets)):
            hidden_states = self.run_layer(i, hidden_states, None, time, text)
            results.append(hidden_states)
        for downsample in self.downsamplers:
            results.append(downsample(hidden_states))
        return results


class MidStage(Stage):
    """The bottom of the U: a residual block, attention, a residual block."""

    def forward(self, hidden_states: Tensor, time: Tensor, text: Text) -> Tensor:
        for i in range(len(self.resnets)):
            hidden_states = self.run_layer(i, hidden_states, None, time, text)
        return hidden_states


class UpStage(Stage):
    """Layers that each take one result of the way down from the end of `skips`, then the next skip's resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.upsamplers = nn.ModuleList()

    def forward(self, hidden_states: Tensor, skips: list[Tensor], time: Tensor, text: Text) -> Tensor:
        for i in range(len(self.resnets)):
            hidden_states = self.run_layer(i, hidden_states, skips.pop(), time, text)
        for upsample in self.upsamplers:
            hidden_states = upsample(hidden_states, size=skips[-1].shape[2:])
        return hidden_states


class UNet(nn.Module):
    """Noisy latents, timesteps and text in, a prediction of the latents' shape out (Rombach et al. 2022).

    At the size of Stable Diffusion 1.x (R: residual block, A: attention to the picture itself and to the text)::

        latents  4 x 64 x 64                               prediction  4 x 64 x 64
          | conv_in                                          ^ conv_norm_out, silu, conv_out
         320 x 64 x 64    RA RA  ------- 3 skips ------->  RA RA RA
          v downsample                                       ^ upsample
         640 x 32 x 32    RA RA  ------- 3 skips ------->  RA RA RA
          v                                                  ^
        1280 x 16 x 16    RA RA  ------- 3 skips ------->  RA RA RA
          v                                                  ^
        1280 x  8 x  8    R  R   ------- 3 skips ------->  R  R  R
          |                                                  ^
          +---------------------->  R A R  ------------------+

    Weights have the names, shapes and first draw of diffusers' `UNet2DConditionModel`, arguments its config keys and
    defaults; `config` is that class's config dict, in plain JSON types. Sizes that do not halve evenly work too;
    latents in channels_last memory give a prediction in channels_last memory.

    Args:
        sample_size: height and width of the latents it is meant for; recorded only, every size runs.
        in_channels: channels of the latents.
        out_channels: channels of the prediction.
        down_block_types: per level, top to bottom, `CrossAttnDownBlock2D` (with attention) or `DownBlock2D`.
        up_block_types: per level, bottom to top, `CrossAttnUpBlock2D` (with attention) or `UpBlock2D`.
        block_out_channels: channels per level, top to bottom, each a multiple of `norm_num_groups`.
        layers_per_block: layers per level on the way down; the way up has one more.
        attention_head_dim: the number of heads (SD1's configs name it so), for all levels or as a list per level.
        cross_attention_dim: channels of the text states.
        use_linear_projection: store the projections around attention as (out, in) instead of (out, in, 1, 1).
        norm_num_groups: groups of every group normalisation.
        norm_eps: epsilon of the group normalisations of residual blocks and output.
        flip_sin_to_cos: cosines before sines in the timestep sinusoid.
        freq_shift: see `timestep_sinusoid`.
        gradient_checkpointing: trade about a third more compute for activations of one layer instead of all.

    Raises:
        ConfigError: naming all the arguments that do not fit together.
    """

    def __init__(
        self,
        sample_size: int | Sequence[int] | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = (*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"),
        up_block_types: Sequence[str] = ("UpBlock2D", *["CrossAttnUpBlock2D"] * 3),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_head_dim: int | Sequence[int] = 8,
        cross_attention_dim: int = 1280,
        use_linear_projection: bool = False,
        norm_num_groups: int = 32,
        norm_eps: float = 1e-5,
        flip_sin_to_cos: bool = True,
        freq_shift: float = 0,
        gradient_checkpointing: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name in _config_defaults()}  # before any local
        refuse(misfits(arguments))
        super().__init__()
        self.config = {
            "_class_name": "UNet2DConditionModel",
            **{key: _plain(value) for key, value in arguments.items()},
        }

        top, bottom = block_out_channels[0], block_out_channels[-1]
        heads = per_level(attention_head_dim, len(block_out_channels))
        resnet = partial(ResBlock, time_channels=4 * top, norm_num_groups=norm_num_groups, norm_eps=norm_eps)
        attention = partial(
            SpatialTransformer,
            cross_attention_dim=cross_attention_dim,
            norm_num_groups=norm_num_groups,
            use_linear_projection=use_linear_projection,
        )

        self.sinusoid = partial(timestep_sinusoid, channels=top, flip_sin_to_cos=flip_sin_to_cos, freq_shift=freq_shift)
        self.conv_in = nn.Conv2d(in_channels, top, 3, padding=1)
        self.time_embedding = TimestepEmbedding(top, 4 * top)

        self.down_blocks = nn.ModuleList()
        channels, skips = top, [top]  # the widths of what flows, and of what the way up will take
        for kind, width, num_heads in zip(down_block_types, block_out_channels, heads, strict=True):
            down = DownStage()
            for _ in range(layers_per_block):
                down.add(resnet(channels, width), attention(width, num_heads) if has_attention(kind) else None)
                channels = width
                skips.append(channels)
            if len(self.down_blocks) < len(down_block_types) - 1:
                down.downsamplers.append(Downsample(channels))
                skips.append(channels)
            self.down_blocks.append(down)

        self.mid_block = MidStage()
        self.mid_block.add(resnet(bottom, bottom), attention(bottom, heads[-1]))
        self.mid_block.add(resnet(bottom, bottom))

        self.up_blocks = nn.ModuleList()
        for kind, width, num_heads in zip(up_block_types, reversed(block_out_channels), reversed(heads), strict=True):
            up = UpStage()
            for _ in range(layers_per_block + 1):
                skip = skips.pop()
                up.add(resnet(channels + skip, width), attention(width, num_heads) if has_attention(kind) else None)
                channels = width
            if skips:
                up.upsamplers.append(Upsample(channels))
            self.up_blocks.append(up)

        self.conv_norm_out = nn.GroupNorm(norm_num_groups, top, norm_eps)
        self.conv_out = nn.Conv2d(top, out_channels, 3, padding=1)

        if gradient_checkpointing:
            self.checkpoint_gradients()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], gradient_checkpointing: bool = False) -> UNet:
        """The network that diffusers would build from this config dict (a `unet/config.json`, or `dict(model.config)`).

        Raises ConfigError that names every key asking for what this network does not have.
        """
        return cls(**read_config(config, _config_defaults()), gradient_checkpointing=gradient_checkpointing)

    def checkpoint_gradients(self) -> None:
        """From here on keep the activations of one layer instead of all, for about a third more compute."""
        for stage in self._stages():
            stage.gradient_checkpointing = True

    def read(self, encoder_hidden_states: Tensor) -> Text:
        """What `forward` takes in place of text states (B, T, cross_attention_dim), so that the steps of a sampler share it."""
        blocks = (module for module in self.modules() if isinstance(module, TransformerBlock))
        return Text.of(encoder_hidden_states).read_by(block.attn2 for block in blocks)

    def forward(self, latents: Tensor, timesteps: Tensor | float, encoder_hidden_states: Tensor | Text) -> Tensor:
        """Predict what the objective asks for: noise, velocity or flow.

        latents: (B, in_channels, H, W), any H and W. timesteps: one for all or (B,), whole or fractional, rising with
        noise. encoder_hidden_states: text states of every token, (B, T, cross_attention_dim), or what `read` made of them.
        Returns (B, out_channels, H, W). Given several texts for each picture (see Text), one prediction for each text: what
        comes before the first look at the text is computed once for all of them.
        """
        if not isinstance(timesteps, Tensor):
            timesteps = latents.new_full((), timesteps, dtype=torch.float32)
        timesteps = timesteps.to(latents.device).expand(latents.shape[0])
        text = Text.of(encoder_hidden_states)
        sinusoid = self.sinusoid(for_each_text(timesteps, len(text.states))).to(latents.dtype)
        time = F.silu(self.time_embedding(sinusoid))  # every residual block begins with this silu: taken once

        skips = [self.conv_in(latents)]
        for down in self.down_blocks:
            skips += down(skips[-1], time, text)
        hidden_states = self.mid_block(skips[-1], time, text)
        for up in self.up_blocks:
            hidden_states = up(hidden_states, skips, time, text)
        return self.conv_out(F.silu(self.conv_norm_out(hidden_states)))

    def _stages(self) -> tuple[Any, ...]:
        """In the order in which they run."""
        return *self.down_blocks, self.mid_block, *self.up_blocks


def has_attention(block_type: str) -> bool:
    """Whether a diffusers block type attends: `CrossAttnDownBlock2D` does, `DownBlock2D` does not."""
    return block_type.startswith("CrossAttn")


def _config_defaults() -> dict[str, Any]:
    """The constructor's arguments that describe the network, and so stand in its config, with their defaults."""
    parameters = inspect.signature(UNet).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "gradient_checkpointing"}


def _plain(value: Any) -> Any:
    """Sequences of any kind as lists, as JSON has them."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value

"""The network of the released checkpoint `sd_epoch_042.pt`, at any size: a relative of Stable Diffusion's, not the same.

Attributes that hold weights are named and ordered as in that file, so that its weights and its optimizer's state, which goes by
order, fit without a table.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sdscratch.errors import ConfigError, check_whole
from sdscratch.models import blocks
from sdscratch.models.blocks import Text, for_each_text, timestep_sinusoid, to_map, to_tokens

GROUPS = 32
"""Of every group normalisation."""

GroupNorm = partial(nn.GroupNorm, GROUPS)


class Attention(blocks.Attention):
    """Whose last layer starts at zero."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__(channels, context_channels, num_heads)
        self.to_out = zeroed(nn.Linear(channels, channels))


class TransformerBlock(nn.Module):
    """Tokens look at each other, then at the text, then think: three pre-norm residual updates of (B, N, channels)."""

    def __init__(self, channels: int, num_heads: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.ln3 = nn.LayerNorm(channels), nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.self_attn = Attention(channels, channels, num_heads)
        self.cross_attn = Attention(channels, cross_attention_dim, num_heads)
        self.mlp = nn.Sequential(
            nn.Linear(channels, 4 * channels), nn.GELU(), zeroed(nn.Linear(4 * channels, channels))
        )

    def forward(self, tokens: Tensor, text: Text) -> Tensor:
        tokens = tokens + self.self_attn(self.ln1(tokens))
        tokens = tokens + self.cross_attn(self.ln2(tokens), text)
        return tokens + self.mlp(self.ln3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map (B, channels, H, W), as an update to it."""

    def __init__(self, channels: int, num_heads: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.proj_out = zeroed(nn.Conv2d(channels, channels, 1))
        self.tfm = TransformerBlock(channels, num_heads, cross_attention_dim)

    def forward(self, hidden_states: Tensor, text: Text) -> Tensor:
        tokens = self.tfm(to_tokens(self.proj_in(self.norm(hidden_states))), text)
        return hidden_states + self.proj_out(to_map(tokens, hidden_states.shape[2:]))


class ResBlock(nn.Module):
    """Two convolutions around a shortcut, with the transformer, where there is one, on what they add and not on the sum.

    hidden_states (B, in_channels, H, W), time (B, time_channels), text (B, T, D) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, transformer: SpatialTransformer | None
    ) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_channels, out_channels))
        self.norm1 = GroupNorm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = GroupNorm(out_channels)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.tfm = transformer
        self.gradient_checkpointing = False

    def forward(self, hidden_states: Tensor, time: Tensor, text: Text) -> Tensor:
        """Under gradient checkpointing only the inputs are kept, and the backward pass runs the block again."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            inputs = hidden_states, time, text
            return checkpoint(self._block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return self._block(hidden_states, time, text)

    def _block(self, hidden_states: Tensor, time: Tensor, text: Text) -> Tensor:
        update = self.conv1(F.silu(self.norm1(hidden_states))) + self.time_mlp(time)[:, :, None, None]
        update = self.conv2(F.silu(self.norm2(update)))
        if self.tfm is not None:
            update = self.tfm(update, text)
        return update + self.skip(hidden_states)


class ReleasedUNet(nn.Module):
    """Noisy latents, timesteps and text in, a prediction of the latents' shape out.

    At the size of the released weights, 780,718,404 parameters (R: residual block, A: with attention inside)::

        latents  4 x 64 x 64                             prediction  4 x 64 x 64
          | conv_in                                        ^ norm_out, silu, conv_out
         320 x 64 x 64    R  R   ------ 2 skips ------>   R  R
          v convolution                                    ^ transposed convolution
         640 x 32 x 32    RA RA  ------ 2 skips ------>   RA RA
          v                                                ^
        1280 x 16 x 16    RA RA  ------ 2 skips ------>   RA RA
          v                                                ^
        1280 x  8 x  8    RA RA  ------ 2 skips ------>   RA RA
          |                                                ^
          +--------------------->  RA R  ------------------+

    `config` holds the arguments in plain JSON types. What ends a residual update starts at 0, so a new network predicts 0.

    Args:
        sample_size: height and width of the latents it is meant for; recorded only, every size that halves evenly runs.
        in_channels: channels of the latents.
        out_channels: channels of the prediction.
        block_out_channels: channels per level, top to bottom, each a multiple of 32 and of the number of heads.
        layers_per_block: residual blocks per level, on the way down as on the way up.
        attention_levels: which levels attend, the top one being 0; between the ways down and up, the first block always does.
        num_attention_heads: heads of every attention.
        cross_attention_dim: channels of the text states.
        gradient_checkpointing: trade about a third more compute for activations of one residual block instead of all.

    Raises:
        ConfigError: naming the argument that does not fit.
    """

    def __init__(
        self,
        sample_size: int | None = None,
        in_channels: int = 4,
        out_channels: int = 4,
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        attention_levels: Sequence[int] = (1, 2, 3),
        num_attention_heads: int = 8,
        cross_attention_dim: int = 768,
        gradient_checkpointing: bool = False,
    ) -> None:
        arguments = {name: value for name, value in locals().items() if name in _config_keys()}  # before any local
        _check(arguments)
        super().__init__()
        plain = {name: list(value) if isinstance(value, Sequence) else value for name, value in arguments.items()}
        self.config: dict[str, Any] = {"_class_name": "ReleasedUNet", **plain}

        top, bottom = block_out_channels[0], block_out_channels[-1]
        levels = range(len(block_out_channels))

        def block(in_channels: int, out_channels: int, attends: bool) -> ResBlock:
            transformer = (
                SpatialTransformer(out_channels, num_attention_heads, cross_attention_dim) if attends else None
            )
            return ResBlock(in_channels, out_channels, top, transformer)

        self.t_emb = nn.Sequential(nn.Linear(top, 4 * top), nn.SiLU(), nn.Linear(4 * top, top))
        self.conv_in = nn.Conv2d(in_channels, top, 3, padding=1)

        self.downs = nn.ModuleList()
        channels, skips = top, []  # the width of what flows, and those that the way up will take
        for level in levels:
            for _ in range(layers_per_block):
                self.downs.append(block(channels, block_out_channels[level], level in attention_levels))
                channels = block_out_channels[level]
                skips.append(channels)
            if level != levels[-1]:
                self.downs.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))

        self.mid = nn.ModuleList([block(bottom, bottom, True), block(bottom, bottom, False)])

        self.ups = nn.ModuleList()
        for level in reversed(levels):
            for _ in range(layers_per_block):
                self.ups.append(block(channels + skips.pop(), block_out_channels[level], level in attention_levels))
                channels = block_out_channels[level]
            if level != 0:
                self.ups.append(nn.ConvTranspose2d(channels, channels, 4, stride=2, padding=1))

        self.norm_out = GroupNorm(top)
        self.conv_out = zeroed(nn.Conv2d(top, out_channels, 3, padding=1))

        if gradient_checkpointing:
            self.checkpoint_gradients()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], gradient_checkpointing: bool = False) -> ReleasedUNet:
        """The network of a config dict (`unet/config.json`, or `model.config`). Raises ConfigError for keys it has not."""
        unknown = sorted(key for key in config if key not in _config_keys() and not key.startswith("_"))
        if unknown:
            raise ConfigError(f"a ReleasedUNet has no {', '.join(unknown)}: remove it, or name another _class_name")
        known = {key: value for key, value in config.items() if not key.startswith("_")}
        return cls(**known, gradient_checkpointing=gradient_checkpointing)

    def checkpoint_gradients(self) -> None:
        """From here on keep the activations of one residual block instead of all, for about a third more compute."""
        for layer in (*self.downs, *self.mid, *self.ups):
            if isinstance(layer, ResBlock):
                layer.gradient_checkpointing = True

    def read(self, encoder_hidden_states: Tensor) -> Text:
        """What `forward` takes in place of text states (B, T, cross_attention_dim), so that the steps of a sampler share it."""
        blocks = (module for module in self.modules() if isinstance(module, TransformerBlock))
        return Text.of(encoder_hidden_states).read_by(block.cross_attn for block in blocks)

    def forward(self, latents: Tensor, timesteps: Tensor | float, encoder_hidden_states: Tensor | Text) -> Tensor:
        """Predict what the objective asks for: noise, velocity or flow.

        latents: (B, in_channels, H, W), H and W multiples of what the levels halve. timesteps: one for all or (B,), whole
        or fractional, rising with noise. encoder_hidden_states: text states of every token, (B, T, cross_attention_dim), or
        what `read` made of them; several for each picture give one prediction for each.
        Returns (B, out_channels, H, W). Raises ConfigError for other sizes.
        """
        factor = 2 ** (len(self.config["block_out_channels"]) - 1)
        if latents.shape[2] % factor or latents.shape[3] % factor:
            height, width = latents.shape[2:]
            raise ConfigError(
                f"the latents are {height} x {width}, but this network halves them evenly down to 1/{factor}: choose a "
                f"size that gives multiples of {factor}"
            )
        if not isinstance(timesteps, Tensor):
            timesteps = latents.new_full((), timesteps, dtype=torch.float32)
        timesteps = timesteps.to(latents.device).expand(latents.shape[0])
        text = Text.of(encoder_hidden_states)
        latents, timesteps = (for_each_text(rows, len(text.states)) for rows in (latents, timesteps))
        sinusoid = timestep_sinusoid(
            timesteps, self.config["block_out_channels"][0], flip_sin_to_cos=False, freq_shift=1
        )
        time = self.t_emb(sinusoid.to(latents.dtype))

        hidden_states = self.conv_in(latents)
        skips = []
        for layer in self.downs:
            if isinstance(layer, ResBlock):
                hidden_states = layer(hidden_states, time, text)
                skips.append(hidden_states)
            else:
                hidden_states = layer(hidden_states)
        for layer in self.mid:
            hidden_states = layer(hidden_states, time, text)
        for layer in self.ups:
            if isinstance(layer, ResBlock):
                hidden_states = torch.cat([hidden_states, skips.pop()], dim=1)
                hidden_states = layer(hidden_states, time, text)
            else:
                hidden_states = layer(hidden_states)
        return self.conv_out(F.silu(self.norm_out(hidden_states)))


def zeroed(layer: nn.Linear | nn.Conv2d) -> Any:
    """The layer, with weights and biases of 0."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _config_keys() -> list[str]:
    """The constructor's arguments that describe the network, and so stand in its config."""
    return [name for name in inspect.signature(ReleasedUNet).parameters if name != "gradient_checkpointing"]


def _check(arguments: Mapping[str, Any]) -> None:
    for name in ("in_channels", "out_channels", "layers_per_block", "num_attention_heads", "cross_attention_dim"):
        check_whole(f"model.{name}", arguments[name])
    widths, attending = list(arguments["block_out_channels"]), list(arguments["attention_levels"])
    heads = arguments["num_attention_heads"]
    if not widths or any(
        not isinstance(width, int) or width < 1 or width % GROUPS or width % heads for width in widths
    ):
        raise ConfigError(
            f"model.block_out_channels is {widths}: expected multiples of {GROUPS} and of model.num_attention_heads={heads}"
        )
    if not set(attending) <= set(range(len(widths))):
        raise ConfigError(f"model.attention_levels is {attending}: expected numbers from 0 to {len(widths) - 1}")

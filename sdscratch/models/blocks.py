"""The layers that a latent-diffusion UNet is made of (Rombach et al. 2022).

Attributes that hold weights are named as in diffusers, so that weights pass both ways without a table.
Feature maps are (B, C, H, W), in contiguous or channels_last memory; tokens are the same values as (B, H*W, C).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sdscratch.errors import ConfigError

CPU_VECTOR = 16  # numbers of float32 that a CPU's widest instructions work on


def timestep_sinusoid(timesteps: Tensor, channels: int, flip_sin_to_cos: bool, freq_shift: float) -> Tensor:
    """Timesteps (B,), whole or fractional -> float32 (B, channels): sines and cosines of wavelengths 2 pi to 20000 pi.

    Always float32 (Vaswani et al. 2017, section 3.5, as in diffusers): half precision cannot tell 999 from 1000.
    Sines come first, unless `flip_sin_to_cos`; `freq_shift` = 1 reaches the longest wavelength exactly.
    """
    half = channels // 2
    exponents = -math.log(10_000) * torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(exponents / (half - freq_shift))
    waves = [angles.cos(), angles.sin()] if flip_sin_to_cos else [angles.sin(), angles.cos()]
    sinusoid = torch.cat(waves, dim=-1)
    return F.pad(sinusoid, (0, 1)) if channels % 2 else sinusoid


class TimestepEmbedding(nn.Module):
    """A two-layer perceptron from the sinusoid (B, in_channels) to what residual blocks read (B, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_channels, out_channels)
        self.linear_2 = nn.Linear(out_channels, out_channels)

    def forward(self, sinusoid: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(sinusoid)))


class ResBlock(nn.Module):
    """Two convolutions around a shortcut; between them the noise level is added to every pixel.

    hidden_states (B, in_channels, H, W), time (B, time_channels) -> (B, out_channels, H, W).
    """

    def __init__(
        self, in_channels: int, out_channels: int, time_channels: int, norm_num_groups: int, norm_eps: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(norm_num_groups, in_channels, norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, out_channels)
        self.norm2 = nn.GroupNorm(norm_num_groups, out_channels, norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, hidden_states: Tensor, time: Tensor) -> Tensor:
        update = self.conv1(F.silu(self.norm1(hidden_states)))
        update = update + self.time_emb_proj(time)[:, :, None, None]
        update = self.conv2(F.silu(self.norm2(update)))
        return self.conv_shortcut(hidden_states) + update


class Text(NamedTuple):
    """What the tokens of a picture gather from beside each other.

    states: (B, T, cross_attention_dim); or of several texts for each of B pictures, the first of all, then the second of all.
    mask: (1, T), 0, or -inf for states that are there to fill up only; None: all count.
    read: keys and values, by the attention that they are for; None: each makes its own.
    """

    states: Tensor
    mask: Tensor | None = None
    read: Mapping[Attention, tuple[Tensor, Tensor]] | None = None

    @classmethod
    def of(cls, states: Tensor | Text) -> Text:
        """Of text states (B, T, cross_attention_dim); a text is one already.

        On a CPU filled up to whole vectors: it takes 16 exponentials at once and what is left over one by one, so that
        attention to 77 tokens takes twice as long as to 80. Half precision, which GPUs compute in, is left as it is.
        """
        if isinstance(states, Text):
            return states
        filling = -states.shape[1] % CPU_VECTOR
        if not states.is_cpu or states.dtype.itemsize < 4 or filling == 0:
            return cls(states)
        mask = F.pad(states.new_zeros(1, states.shape[1]), (0, filling), value=-math.inf)
        return cls(F.pad(states, (0, 0, 0, filling)), mask)

    def read_by(self, attentions: Iterable[Attention]) -> Text:
        """The same with the keys and values of these, so that the steps of a sampler share them."""
        return self._replace(read={attention: attention.read(self) for attention in attentions})

    def only(self, attention: Attention) -> Text:
        """What this attention needs of it. Given all of `read`, no two blocks would share what was compiled."""
        return self if self.read is None else self._replace(read={attention: self.read[attention]})


def for_each_text(rows: Tensor, texts: int) -> Tensor:
    """(B, ...), of each picture -> (texts, ...), of each of as many texts. Until pictures meet their texts, once is enough.

    Raises ConfigError where texts is no multiple of B.
    """
    if len(rows) == texts:
        return rows
    if len(rows) == 0 or texts < len(rows) or texts % len(rows):
        raise ConfigError(f"{texts} texts for {len(rows)} pictures: expected as many for each")
    return torch.cat([rows] * (texts // len(rows)))


class Attention(nn.Module):
    """Multi-head attention: every token (B, N, channels) gathers from the text, or without one from all the tokens."""

    def __init__(self, channels: int, context_channels: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(context_channels, channels, bias=False)
        self.to_v = nn.Linear(context_channels, channels, bias=False)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def read(self, text: Text) -> tuple[Tensor, Tensor]:
        """Keys and values, (B, T, channels) each: the same whatever the tokens are."""
        return self.to_k(text.states), self.to_v(text.states)

    def forward(self, tokens: Tensor, text: Text | None = None) -> Tensor:
        if text is None:
            # One product for all three; their weights are small beside the tokens, so joining them costs little.
            weights = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
            projected, mask = F.linear(tokens, weights).chunk(3, dim=-1), None
        else:
            keys_and_values = self.read(text) if text.read is None else text.read[self]
            projected, mask = (self.to_q(tokens), *keys_and_values), text.mask
        query, key, value = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        gathered = F.scaled_dot_product_attention(query, key, value, mask)  # (B, heads, N, channels / heads)
        return self.to_out(gathered.transpose(1, 2).flatten(2))


class Gate(Function):
    """values * gelu(gates), of both side by side (..., 2 C) -> (..., C).

    The backward pass computes gelu again instead of keeping it, which takes a third off what a feed-forward layer keeps, and
    writes both gradients where they belong.
    """

    @staticmethod
    def forward(both: Tensor) -> Tensor:
        values, gates = both.chunk(2, dim=-1)
        return values * F.gelu(gates)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        values, gates = both.chunk(2, dim=-1)
        of_both = torch.empty_like(both)
        of_values, of_gates = of_both.chunk(2, dim=-1)
        torch.mul(gradient, F.gelu(gates), out=of_values)
        torch.mul(gradient, values, out=of_gates)
        torch.ops.aten.gelu_backward.grad_input(of_gates, gates, grad_input=of_gates)
        return of_both


class GEGLU(nn.Module):
    """A linear layer whose output is gated by the GELU of another (Shazeer 2020)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_channels, 2 * out_channels)

    def forward(self, tokens: Tensor) -> Tensor:
        both = self.proj(tokens)
        return Gate.forward(both) if torch.compiler.is_compiling() else Gate.apply(both)  # a compiler chooses by itself


class FeedForward(nn.Module):
    """The per-token perceptron of a transformer, four times as wide inside: (B, N, channels) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The middle place is kept for the dropout that diffusers has there, so that the last layer is net.2 here too.
        self.net = nn.Sequential(GEGLU(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.net(tokens)


class TransformerBlock(nn.Module):
    """Tokens look at each other, then at the text, then think: three pre-norm residual updates of (B, N, channels).

    Given several texts for each picture, tokens come back for each text.
    """

    def __init__(self, channels: int, num_heads: int, cross_attention_dim: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = Attention(channels, channels, num_heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = Attention(channels, cross_attention_dim, num_heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, tokens: Tensor, text: Text) -> Tensor:
        tokens = tokens + self.attn1(self.norm1(tokens))
        tokens = for_each_text(tokens, len(text.states))
        tokens = tokens + self.attn2(self.norm2(tokens), text)
        return tokens + self.ff(self.norm3(tokens))


class SpatialTransformer(nn.Module):
    """A transformer block over the pixels of a feature map, as an update to it.

    hidden_states (B, channels, H, W), text (B, T, cross_attention_dim) -> (B, channels, H, W); one for each text.
    `use_linear_projection` chooses linear layers over 1x1 convolutions; they differ in the shape of their weights only.
    """

    def __init__(
        self,
        channels: int,
        num_heads: int,
        cross_attention_dim: int,
        norm_num_groups: int,
        use_linear_projection: bool,
    ) -> None:
        super().__init__()
        if num_heads > channels:
            raise ConfigError(f"attention_head_dim asks for {num_heads} heads on {channels} channels: set fewer heads")
        projection = nn.Linear if use_linear_projection else partial(nn.Conv2d, kernel_size=1)
        inner_channels = channels // num_heads * num_heads  # narrower than `channels` where heads do not divide them
        self.norm = nn.GroupNorm(norm_num_groups, channels, eps=1e-6)  # in every SD1 model, whatever its norm_eps
        self.proj_in = projection(channels, inner_channels)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(inner_channels, num_heads, cross_attention_dim)])
        self.proj_out = projection(inner_channels, channels)
        self.use_linear_projection = use_linear_projection

    def forward(self, hidden_states: Tensor, text: Text) -> Tensor:
        linear, size = self.use_linear_projection, hidden_states.shape[2:]
        normed = self.norm(hidden_states)
        tokens = self.proj_in(to_tokens(normed)) if linear else to_tokens(self.proj_in(normed))
        for block in self.transformer_blocks:
            tokens = block(tokens, text.only(block.attn2))  # type: ignore[arg-type]
        update = to_map(self.proj_out(tokens), size) if linear else self.proj_out(to_map(tokens, size))
        return for_each_text(hidden_states, len(text.states)) + update


def to_tokens(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H*W, C), without a copy."""
    return feature_map.flatten(2).transpose(1, 2).contiguous()


def to_map(tokens: Tensor, size: torch.Size) -> Tensor:
    """(B, H*W, C) -> (B, C, H, W), without a copy; contiguous tokens make a channels_last map."""
    return tokens.transpose(1, 2).unflatten(2, size)


class Downsample(nn.Module):
    """Halves height and width, rounding up: (B, channels, H, W) -> (B, channels, ceil(H/2), ceil(W/2))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, hidden_states: Tensor) -> Tensor:
        return self.conv(hidden_states)


class SmoothedEnlargement(Function):
    """A 3x3 convolution of a map (B, C, H, W) whose pixels are repeated up to `size`.

    The backward pass repeats them again instead of keeping four times as many.
    """

    @staticmethod
    def forward(hidden_states: Tensor, weight: Tensor, bias: Tensor | None, size: torch.Size) -> Tensor:
        return F.conv2d(F.interpolate(hidden_states, size=size, mode="nearest"), weight, bias, padding=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, torch.Size], output: Tensor) -> None:
        hidden_states, weight, _, ctx.size = inputs
        ctx.save_for_backward(hidden_states, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        hidden_states, weight = (x.to(gradient.dtype) for x in ctx.saved_tensors)  # they differ under autocast
        enlarged = F.interpolate(hidden_states, size=ctx.size, mode="nearest")
        once, no_padding, sizes = [1, 1], [0, 0], [len(weight)]
        of_enlarged, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, enlarged, weight, sizes, once, once, once, False, no_padding, 1, [True, True, True]
        )
        of_hidden_states = torch.ops.aten.upsample_nearest2d_backward(of_enlarged, ctx.size, hidden_states.shape)
        return of_hidden_states, of_weight, of_bias, None


class Upsample(nn.Module):
    """Repeats pixels up to `size` (height, width), about twice the present one, and smooths with a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, hidden_states: Tensor, size: torch.Size) -> Tensor:
        enlarge = SmoothedEnlargement.forward if torch.compiler.is_compiling() else SmoothedEnlargement.apply
        return enlarge(hidden_states, self.conv.weight, self.conv.bias, size)

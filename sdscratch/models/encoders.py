"""The frozen parts around the UNet: pictures to latents and back (VAE), captions to text states (CLIP).

Both come from a pretrained folder or from random initialisation, by configuration. Nothing here downloads: a hub id must
already be in the local cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer

from sdscratch.devices import send
from sdscratch.errors import ConfigError, DataError, check_whole
from sdscratch.models.initialisation import new_embeddings, preserve_variance
from sdscratch.models.pretrained import load_pretrained, without_commentary
from sdscratch.models.tokenizer import load_tokenizer, read_tokenizer, train_tokenizer


@dataclass
class TextEncoder:
    """A CLIP text tower with the tokenizer it was trained with, and the whole CLIP where the image tower is at hand.

    Where the tower's config says `use_attention_mask`, tokens that only pad are not attended to, as in pipelines of diffusers.
    """

    model: CLIPTextModel
    tokenizer: CLIPTokenizer
    clip: CLIPModel | None = None

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name the tower's weights, the vocabulary, and whether padding is masked."""
        vocabulary = repr(sorted(self.tokenizer.get_vocab().items()))
        masked = " masked" if self.masks_padding else ""
        return sha256(f"{fingerprint(self.model)} {vocabulary}{masked}".encode()).hexdigest()[:16]

    @property
    def states_shape(self) -> tuple[int, int]:
        """(T, D) of a caption's states."""
        return self.tokenizer.model_max_length, self.model.config.hidden_size

    @property
    def masks_padding(self) -> bool:
        """Stable Diffusion 1.x does not: its states of padding see earlier padding too."""
        return bool(getattr(self.model.config, "use_attention_mask", False))

    def tokens(self, captions: Sequence[str]) -> Tensor:
        """Token ids, int64 (B, T): start, text cut at T - 2 tokens, end; padded with end up to T = `model_max_length`."""
        return self._tokenize(captions).input_ids

    @torch.no_grad()
    def __call__(self, captions: Sequence[str]) -> Tensor:
        """States of all tokens after the final norm, (B, T, D): what StableDiffusionPipeline feeds to its UNet.

        Each distinct caption is encoded once, which with caption dropout and class captions saves most of the work.
        """
        distinct = sorted(set(captions))
        batch = self._tokenize(distinct)
        mask = send(batch.attention_mask, self.model.device) if self.masks_padding else None
        states = self.model(send(batch.input_ids, self.model.device), attention_mask=mask).last_hidden_state
        known = dict(zip(distinct, states, strict=True))
        return torch.stack([known[caption] for caption in captions])

    def _tokenize(self, captions: Sequence[str]) -> Any:
        length = self.tokenizer.model_max_length
        return self.tokenizer(
            list(captions), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )

    def remembering(self, texts: Iterable[str]) -> TextEncoder:
        """The same encoder, for as long as it is frozen: of these texts, each is encoded once, alone and in full precision.

        So their states are the same bits in every batch, whenever they were first asked for.
        """
        return _RememberingTextEncoder(**vars(self), texts=frozenset(texts))


@dataclass
class _RememberingTextEncoder(TextEncoder):
    texts: frozenset[str] = frozenset()
    known: dict[str, Tensor] = field(default_factory=dict)

    def __call__(self, captions: Sequence[str]) -> Tensor:
        asked = set(captions)
        for text in sorted(asked & self.texts - self.known.keys()):
            with torch.autocast(self.model.device.type, enabled=False):
                self.known[text] = super().__call__([text])[0]
        others = sorted(asked - self.texts)
        known = self.known | dict(zip(others, super().__call__(others) if others else (), strict=True))
        return torch.stack([known[caption] for caption in captions])


@dataclass
class FrozenEncoders:
    """What a diffusion run uses but does not train. No Module on purpose: not in its checkpoints, DDP or EMA."""

    vae: AutoencoderKL
    text: TextEncoder

    def __post_init__(self) -> None:
        for network in (self.vae, self.text.model):
            network.eval().requires_grad_(False)

    @property
    def unet_sizes(self) -> dict[str, int]:
        """What the config of a UNet has to say, to fit them."""
        channels: int = self.vae.config.latent_channels
        return {
            "in_channels": channels,
            "out_channels": channels,
            "cross_attention_dim": self.text.model.config.hidden_size,
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenEncoders:
        return self

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> FrozenEncoders:
        """Move both networks, or change their dtype, in place; None leaves as it is."""
        with without_commentary():  # diffusers warns of modules to be kept in float32, of which there are none here
            for network in (self.vae, self.text.model):
                network.to(device=device, dtype=dtype)
        return self

    @torch.no_grad()
    def encode_images(self, images: Tensor, noise: Tensor) -> Tensor:
        """Latents (B, C, h, w), scaled to unit variance, of images (B, 3, H, W) in [-1, 1], or of one in B ways.

        noise: unit noise (B, C, h, w), which draws from the posterior.
        """
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images (B, 3, H, W), about in [-1, 1], of scaled latents."""
        return self.vae.decode((latents / self.vae.config.scaling_factor).to(self.vae.dtype)).sample


def downsampling_factor(vae: AutoencoderKL) -> int:
    """How many pixels one latent spans in each direction."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def fingerprint(network: nn.Module) -> str:
    """16 hex digits that name the weights. The scaling factor is left out: shards hold raw moments, so it may change."""
    digest = sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def new_vae(
    *,
    block_out_channels: Sequence[int],
    layers_per_block: int,
    latent_channels: int,
    norm_num_groups: int,
    sample_size: int,
    mid_block_add_attention: bool = True,
    posterior_std: float = 0.2,
) -> AutoencoderKL:
    """A VAE with random weights; each further level of block_out_channels halves the resolution once more.

    posterior_std: what the posterior's standard deviation starts from. At 1, as AutoencoderKL comes, its noise drowns
    what a fresh encoder has to say. Its scaling_factor is 1 until training has measured one.
    """
    for name, value in (("layers_per_block", layers_per_block), ("latent_channels", latent_channels)):
        check_whole(f"vae.{name}", value)
    check_whole("vae.norm_num_groups", norm_num_groups)
    if not block_out_channels or any(width < 1 or width % norm_num_groups for width in block_out_channels):
        raise ConfigError(
            f"vae.block_out_channels is {list(block_out_channels)}: expected multiples of vae.norm_num_groups="
            f"{norm_num_groups}, at least one"
        )
    if posterior_std <= 0:
        raise ConfigError(f"vae.posterior_std is {posterior_std}: expected a number above 0")
    levels = len(block_out_channels)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(block_out_channels),
        layers_per_block=layers_per_block,
        latent_channels=latent_channels,
        norm_num_groups=norm_num_groups,
        sample_size=sample_size,
        mid_block_add_attention=mid_block_add_attention,
        scaling_factor=1.0,
    )
    preserve_variance(vae)
    with torch.no_grad():
        vae.quant_conv.weight[latent_channels:].mul_(0.1)
        vae.quant_conv.bias[latent_channels:].fill_(2 * math.log(posterior_std))
    return vae


def load_vae(path: str) -> AutoencoderKL:
    """A trained VAE from a model folder (its `vae/`), a VAE folder or a hub id in the local cache."""
    folder = Path(path) / "vae" if (Path(path) / "vae").is_dir() else path
    return load_pretrained(AutoencoderKL, folder, "VAE")


def load_text_encoder(captions: Iterable[str], path: str, use_attention_mask: bool | None = None) -> TextEncoder:
    """A trained text tower and tokenizer from a model folder (`text_encoder/` and `tokenizer/`) or a hub id of a CLIP.

    captions: where a new text encoder learns its tokenizer from; a trained one brings its own, so they are not read.
    use_attention_mask: whether padding is masked, from here on and in folders saved with it; None leaves it as it was saved.
    """
    root = Path(path)
    is_folder = (root / "text_encoder").is_dir()
    model = load_pretrained(CLIPTextModel, root / "text_encoder" if is_folder else path, "CLIP text encoder")
    if use_attention_mask is not None:
        model.config.use_attention_mask = use_attention_mask
    tokenizer = load_tokenizer(root / "tokenizer") if is_folder else read_tokenizer(path)
    config, length = model.config, tokenizer.model_max_length
    if len(tokenizer) > config.vocab_size or length > config.max_position_embeddings:
        raise DataError(
            f"{path}: its tokenizer knows {len(tokenizer)} tokens and texts of {length}, its text encoder {config.vocab_size} "
            f"tokens and texts of {config.max_position_embeddings}: they are not of one model"
        )
    return TextEncoder(model, tokenizer)


def new_clip(
    captions: Iterable[str],
    *,
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    image_size: int,
    patch_size: int,
    vision_hidden_size: int | None = None,
    vision_num_hidden_layers: int | None = None,
    projection_dim: int | None = None,
    vocab_size: int = 49408,
    max_length: int = 77,
    tokenizer: CLIPTokenizer | None = None,
) -> TextEncoder:
    """A CLIP with random weights (initialisation.py); its tokenizer is learnt from the captions, unless one is given.

    hidden_size is the width of the text states and so the UNet's cross_attention_dim. The image tower (only trained by
    the CLIP stage) takes the text tower's sizes where its own are not given.
    """
    sizes = {"hidden_size": hidden_size, "num_hidden_layers": num_hidden_layers, "patch_size": patch_size}
    for name, value in {**sizes, "num_attention_heads": num_attention_heads}.items():
        check_whole(f"text_encoder.{name}", value)
    tokenizer = tokenizer or train_tokenizer(captions, vocab_size, max_length)
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision_width = vision_hidden_size or hidden_size
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "num_hidden_layers": num_hidden_layers,
            "num_attention_heads": num_attention_heads,
            "max_position_embeddings": tokenizer.model_max_length,
            "projection_dim": projection_dim or hidden_size,
            **special,
        },
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 4 * vision_width,
            "num_hidden_layers": vision_num_hidden_layers or num_hidden_layers,
            "num_attention_heads": max(1, vision_width * num_attention_heads // hidden_size),
            "image_size": image_size,
            "patch_size": patch_size,
            "projection_dim": projection_dim or hidden_size,
        },
        projection_dim=projection_dim or hidden_size,
    )
    clip = CLIPModel(config)
    new_embeddings(clip)
    return TextEncoder(clip.text_model, tokenizer, clip)

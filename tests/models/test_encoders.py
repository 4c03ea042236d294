"""The frozen encoders: what they give does not depend on company, and they are what their folders say."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from torch import nn

from sdscratch.errors import DataError
from sdscratch.models import new_clip, new_vae
from sdscratch.models.encoders import (
    FrozenEncoders,
    TextEncoder,
    downsampling_factor,
    fingerprint,
    load_text_encoder,
    load_vae,
)
from sdscratch.models.initialisation import preserve_variance
from sdscratch.models.tokenizer import save_tokenizer

CAPTIONS = ["a red circle", "top: a blue ring", "", "a red circle"]


@pytest.fixture(scope="module")
def text() -> TextEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}
    made = new_clip(CAPTIONS, **sizes, vocab_size=530, max_length=16)
    made.clip.eval()
    return made


@pytest.fixture(scope="module")
def vae() -> AutoencoderKL:
    torch.manual_seed(0)
    sizes = {"block_out_channels": [8, 8, 8], "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 4}
    return new_vae(**sizes, sample_size=16, mid_block_add_attention=False, posterior_std=0.05)


# Text


def test_states_are_those_of_every_token_and_of_the_tower_itself(text):
    states = text(CAPTIONS)
    assert states.shape == (4, 16, 32)
    expected = text.model(text.tokens(CAPTIONS)).last_hidden_state
    torch.testing.assert_close(states, expected)
    assert states[0].std(0).min() > 0  # the tokens differ


def test_masked_padding_changes_the_states_of_padding_alone(text, tmp_path):
    """Text looks back only, so what is text never sees it."""
    plain, lengths = text(CAPTIONS), text.tokenizer(CAPTIONS).input_ids
    text.model.save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(text.tokenizer, tmp_path / "tokenizer")
    masking = load_text_encoder([], str(tmp_path), use_attention_mask=True)
    for states, before, tokens in zip(masking(CAPTIONS), plain, lengths, strict=True):
        torch.testing.assert_close(states[: len(tokens)], before[: len(tokens)], rtol=1e-4, atol=1e-5)
        assert (states[len(tokens) + 1 :] - before[len(tokens) + 1 :]).abs().max() > 1e-3
    assert masking.fingerprint != text.fingerprint
    masking.model.save_pretrained(tmp_path / "text_encoder")
    assert load_text_encoder([], str(tmp_path)).masks_padding
    assert not load_text_encoder([], str(tmp_path), use_attention_mask=False).masks_padding


def test_states_of_a_caption_do_not_depend_on_its_company(text):
    together = text(CAPTIONS)
    assert torch.equal(together[0], together[3])
    for caption, states in zip(CAPTIONS, together, strict=True):
        torch.testing.assert_close(text([caption])[0], states, rtol=1e-5, atol=1e-6)


def test_a_text_that_is_remembered_reaches_the_tower_once_and_has_the_same_bits_in_any_company_and_precision(text):
    remembering, alone = text.remembering(["", "a red circle"]), text(["a red circle"])[0]
    with torch.autocast("cpu", torch.bfloat16):
        first = remembering(CAPTIONS)
    encoded: list[int] = []
    hook = text.model.register_forward_pre_hook(lambda _, args: encoded.append(len(args[0])))
    states = remembering([*CAPTIONS, "a red circle", "another"])
    hook.remove()
    assert encoded == [2], "the blue ring and the other one"
    assert all(torch.equal(states[row], alone) and torch.equal(first[row % 4], alone) for row in (0, 3, 4))
    assert torch.equal(states[2], text([""])[0])
    torch.testing.assert_close(states[:4], text(CAPTIONS), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(first[1], states[1], rtol=0.05, atol=0.05)
    assert not torch.equal(first[1], states[1]), "others have the precision that is asked for"


def test_the_empty_caption_has_states_of_its_own_and_gradients_never_reach_the_tower(text):
    null, other = text(["", "a"])
    assert null.abs().mean() > 0.1
    assert (null - other).abs().max() > 1e-3
    assert not text(CAPTIONS).requires_grad


def test_a_new_clip_has_the_sizes_asked_for(text):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
    tower = {"vision_hidden_size": 48, "vision_num_hidden_layers": 3, "projection_dim": 24}
    made = new_clip([], **sizes, **tower, tokenizer=text.tokenizer)
    assert made.tokenizer is text.tokenizer
    assert made.model.config.vocab_size == len(text.tokenizer)
    assert made.model.config.max_position_embeddings == text.tokenizer.model_max_length
    assert made.model.config.eos_token_id == text.tokenizer.eos_token_id
    assert len(made.clip.vision_model.encoder.layers) == 3
    assert made.clip.get_image_features(torch.zeros(2, 3, 32, 32)).pooler_output.shape == (2, 24)


def test_a_saved_text_tower_gives_the_same_states(text, tmp_path):
    text.model.save_pretrained(tmp_path / "text_encoder")
    save_tokenizer(text.tokenizer, tmp_path / "tokenizer")
    assert torch.equal(load_text_encoder([], str(tmp_path))(CAPTIONS), text(CAPTIONS))


# VAE


def test_a_new_vae_starts_with_a_narrow_posterior_and_latents_that_carry_the_picture(vae):
    images = torch.rand(8, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
    assert 0.02 < posterior.std.median() < 0.12
    assert posterior.mean.std() > 3 * posterior.std.mean()
    assert posterior.mean.shape == (8, 4, 4, 4)
    assert downsampling_factor(vae) == 4


def test_latents_are_scaled_draws_and_decoding_undoes_the_scaling(vae, text):
    scaled = deepcopy(vae)
    scaled.register_to_config(scaling_factor=0.5)
    encoders = FrozenEncoders(scaled, text)
    images, noise = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 4, 4, 4)
    latents = encoders.encode_images(images, noise)
    with torch.no_grad():
        posterior = vae.encode(images).latent_dist
        draw = posterior.mean + posterior.std * noise
        torch.testing.assert_close(latents, 0.5 * draw)
        torch.testing.assert_close(encoders.decode(latents), vae.decode(draw).sample)


def test_frozen_encoders_are_frozen_and_no_module(vae, text):
    encoders = FrozenEncoders(deepcopy(vae).train(), text)
    assert not isinstance(encoders, nn.Module)
    for network in (encoders.vae, encoders.text.model):
        assert not network.training
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_fingerprint_names_the_weights_and_not_the_scaling_factor(vae):
    other = deepcopy(vae)
    other.register_to_config(scaling_factor=0.5)
    assert fingerprint(other) == fingerprint(vae)
    with torch.no_grad():
        other.decoder.conv_out.bias[0] += 1e-6
    assert fingerprint(other) != fingerprint(vae)


def test_a_saved_vae_comes_back_with_its_weights_and_scaling_factor(vae, tmp_path):
    other = deepcopy(vae)
    other.register_to_config(scaling_factor=0.5)
    other.save_pretrained(tmp_path / "vae")
    for path in (tmp_path, tmp_path / "vae"):
        loaded = load_vae(str(path))
        assert fingerprint(loaded) == fingerprint(vae)
        assert loaded.config.scaling_factor == 0.5


@pytest.mark.parametrize("load", [load_vae, lambda path: load_text_encoder([], path)], ids=["VAE", "text encoder"])
def test_weights_that_are_not_there_are_named_with_a_remedy(load):
    with pytest.raises(DataError, match="there is no .* nobody/nothing: .*hf download nobody/nothing"):
        load("nobody/nothing")


# First weights


def test_convolutions_keep_the_variance_of_what_passes_through():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular") for _ in range(6)))
    preserve_variance(layers)
    signal = torch.randn(4, 64, 16, 16)
    assert 0.7 < layers(signal).std() < 1.4
    assert all(not layer.bias.any() for layer in layers)


def test_residual_blocks_start_as_the_identity(vae):
    block = vae.encoder.down_blocks[0].resnets[0]
    signal = torch.randn(1, 8, 16, 16)
    assert torch.equal(block(signal, None), signal)

"""The caption reaches the network whole, or is dropped for the one null condition."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from stages import CAPTIONS, latent_diffusion, texts_encoded
from tiny import BARE
from torch import Tensor

from sdscratch.commands.train import train
from sdscratch.data.shapes import SHAPES
from sdscratch.pipeline import TextToImage


def states_given_to(network: Any) -> list[Tensor]:
    """All text states that the network will be asked with, as one of its attentions reads them: filled up, on a CPU."""
    seen: list[Tensor] = []
    keys = network.mid_block.attentions[0].transformer_blocks[0].attn2.to_k
    keys.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    return seen


def first_batch(datamodule: Any) -> Any:
    return next(iter(datamodule.train_dataloader()))


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_captions_are_dropped_one_by_one_at_the_configured_rate(tiny_config, rate):
    _, datamodule = latent_diffusion(tiny_config(f"caption_dropout={rate}", "global_batch_size=64"))
    loader = iter(datamodule.train_dataloader())
    batches = [next(loader) for _ in range(8)]
    dropped = torch.cat([batch["dropped"] for batch in batches]).double()
    assert abs(dropped.mean() - rate) <= 4 * (rate * (1 - rate) / len(dropped)) ** 0.5
    captions = [caption for batch in batches for caption in batch["captions"]]
    assert [caption == "" for caption in captions] == dropped.bool().tolist()
    if rate == 0.3:
        assert all(0 < batch["dropped"].sum() < 64 for batch in batches)
        assert not torch.equal(batches[0]["dropped"], batches[1]["dropped"])


def test_the_null_condition_of_training_is_that_of_sampling_the_encoding_of_the_empty_text(tiny_config):
    module, datamodule = latent_diffusion(tiny_config("caption_dropout=1.0"))
    seen = states_given_to(module.network)
    module.losses(first_batch(datamodule))
    pipe = TextToImage(
        module.network,
        module.encoders,
        module.objective.noise_schedule,
        module.objective.prediction_type,
        module.sampling,
    )
    pipe(["a red circle"], guidance_scale=3.0, num_inference_steps=1)
    null = module.encoders.text([""])[0]
    trained, sampled = seen[0][:, : len(null)], torch.cat(seen[1:])[:, : len(null)]
    assert all(torch.equal(states, null) for states in trained)
    assert any(torch.equal(states, null) for states in sampled)
    assert not all(torch.equal(states, null) for states in sampled)
    assert null.std() > 0.1  # not zeros


def test_a_step_encodes_each_distinct_caption_once_and_the_null_condition_only_in_the_first(tiny_config):
    module, datamodule = latent_diffusion(tiny_config("caption_dropout=0.3", "global_batch_size=8"))
    batches = [batch for batch, _ in zip(datamodule.train_dataloader(), range(3), strict=False)]
    batches[1]["captions"] = ["a red circle" if caption else "" for caption in batches[1]["captions"]]
    batches[2]["captions"] = [""] * 8
    with texts_encoded(module.encoders.text) as encoded:
        losses = [float(module.losses(batch)["loss"].detach()) for batch in batches]
    assert 0 < batches[0]["dropped"].sum() < 6
    distinct = len(set(batches[0]["captions"]) - {""})
    assert encoded == [1, distinct, 1], "the null condition, the captions of the first batch, the one of the second"
    module._text = lambda captions: torch.cat([module.encoders.text([caption]) for caption in captions])
    assert losses == pytest.approx([float(module.losses(batch)["loss"].detach()) for batch in batches], rel=1e-5)


def test_captions_are_encoded_in_the_precision_of_the_trainer(tiny_config):
    module, datamodule = latent_diffusion(tiny_config("caption_dropout=0.0"))
    found = []
    layer = module.encoders.text.model.encoder.layers[0].mlp.fc1
    layer.register_forward_hook(lambda *said: found.append(said[-1].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        module.losses(first_batch(datamodule))
    assert found == [torch.bfloat16]


def test_every_word_of_a_caption_changes_what_the_network_answers(tiny_config):
    module, datamodule = latent_diffusion(tiny_config("caption_dropout=0.0"))
    batch = first_batch(datamodule)
    words = CAPTIONS[0].split()
    latents, times = batch["noise"][:1], batch["timesteps"][:1]

    def answer(caption: list[str]) -> Tensor:
        return module.network(latents, times, module.encoders.text([" ".join(caption)]))

    with torch.no_grad():
        before = answer(words)
        for place in range(len(words)):
            changed = [*words[:place], "purple", *words[place + 1 :]]
            assert (answer(changed) - before).abs().max() > 1e-6, words[place]


def test_cross_attention_learns_from_the_first_step_on(tiny_config):
    """With one pooled vector instead of all tokens these gradients would be exactly zero."""
    module, datamodule = latent_diffusion(tiny_config("caption_dropout=0.0"))
    module.losses(first_batch(datamodule))["loss"].backward()
    gradients = {name: p.grad for name, p in module.network.named_parameters() if "attn2" in name and "weight" in name}
    assert {name.rpartition("attn2.")[2] for name in gradients} >= {"to_q.weight", "to_k.weight", "to_v.weight"}
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())


def test_the_encoders_are_no_part_of_what_is_trained_moved_or_saved(tiny_config):
    module, _ = latent_diffusion(tiny_config())
    assert {name.partition(".")[0] for name in module.state_dict()} == {"network"}
    assert not any(
        p.requires_grad for net in (module.encoders.vae, module.encoders.text.model) for p in net.parameters()
    )


def test_latents_encoded_on_line_are_a_scaled_draw_of_the_posterior(tiny_config):
    module, datamodule = latent_diffusion(tiny_config())
    vae = module.encoders.vae
    vae.register_to_config(scaling_factor=0.7)
    batch = first_batch(datamodule)
    seen: list[Tensor] = []
    module.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module.losses(batch)
    posterior = vae.encode(batch["images"]).latent_dist
    latents = 0.7 * (posterior.mean + posterior.std * batch["vae_noise"])
    expected = module.objective.add_noise(latents, batch["noise"], batch["timesteps"])
    torch.testing.assert_close(seen[0], expected)


@pytest.mark.parametrize("objective", ["epsilon", "v_prediction"])
def test_the_other_objectives_train_too(tiny_config, objective):
    choice = (f"objective={objective}", "objective.min_snr_gamma=5.0", "sampler=ddim", "sampler.num_inference_steps=2")
    rows = train(tiny_config(*BARE, *choice, "max_steps=3", "callbacks.validation.every=3")).read_metrics()
    assert all(row["train/loss"] <= row["train/loss_unweighted"] for row in rows)
    assert any(row["train/loss"] < row["train/loss_unweighted"] for row in rows)
    assert rows[-1]["val/loss"] > 0


def test_captions_of_the_embedded_set_come_through_the_tokenizer_apart(tiny_run):
    """Shapes that the tokenizer could not tell apart could not be asked for."""
    text = TextToImage.from_pretrained(tiny_run.path).encoders.text
    tokens = text.tokens([f"a red {shape} at the bottom on a white background" for shape in SHAPES])
    assert len({tuple(row) for row in tokens.tolist()}) == len(SHAPES)

"""The VAE learns, is measured as it is used, and leaves latents of mean 0 and standard deviation 1."""

from __future__ import annotations

import json
import math
from copy import deepcopy

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from stages import autoencoder, fit, image_batch
from torch import nn

from sdscratch.commands.train import train
from sdscratch.config import build, compose
from sdscratch.errors import ConfigError
from sdscratch.models.encoders import load_vae
from sdscratch.models.latent_scale import LatentMoments
from sdscratch.randomness import noise
from sdscratch.run_folder import RunFolder
from sdscratch.training.autoencoder import kl_above

CAPTIONS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module")
def config(tmp_path_factory, tiny_data):
    """30 steps of a tiny VAE on drawn scenes, without pictures."""
    data = [
        "dataset=shapes",
        "dataset.count=64",
        "dataset.val_count=16",
        "dataset.resolution=32",
        f"paths.data={tiny_data}",
    ]
    length = ["max_steps=30", "global_batch_size=8", "optimizer.lr=2.0e-3", "lr_schedule.warmup_steps=2"]
    every = [f"callbacks.{name}.every=15" for name in ("validation", "checkpoints")]
    rest = ["callbacks.metrics.every=1", "callbacks.plots=null", "callbacks.previews.every=30", "stage.ema_decay=0.9"]
    place = [f"paths.runs={tmp_path_factory.mktemp('runs')}", "name=vae", "threads=1", "trainer=cpu", "logger=none"]
    return compose("train", ["stage=autoencoder", "vae=kl_tiny", *data, *length, *every, *rest, *place])


@pytest.fixture(scope="module")
def run(config) -> RunFolder:
    return train(config)


@pytest.fixture(scope="module")
def held_out(config) -> list:
    return list(build(config.dataset).val_dataloader())


def test_the_loss_falls_and_the_picture_gets_better(run):
    rows = run.read_metrics()
    losses = [row["train/loss"] for row in rows]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    first, last = (row["val/psnr"] for row in rows if "val/psnr" in row)
    assert last > first
    assert (run.path / "samples" / "step_00000030" / "ema.png").exists()
    assert run.objective()["metric"] == "val/reconstruction"
    assert run.objective()["value"] == rows[-1]["val/reconstruction"]


def test_the_loss_is_reconstruction_and_weighted_kl(run, config):
    row = run.read_metrics()[0]
    assert row["train/loss"] == pytest.approx(
        row["train/reconstruction"] + config.stage.kl_weight * row["train/kl"], rel=1e-6
    )


def test_the_kl_is_the_closed_form_per_latent_element():
    module, batch = autoencoder(), image_batch()
    with torch.no_grad():
        posterior = module.network.encode(batch["images"]).latent_dist
    mean, variance = posterior.mean.double(), posterior.logvar.double().exp()
    expected = 0.5 * (mean.square() + variance - 1 - variance.log()).mean()
    assert module.losses(batch)["kl"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert module.evaluate(module.network, [batch])["val/kl"] == pytest.approx(expected.item(), rel=1e-5)


def posterior_of(*kl_per_element: float) -> DiagonalGaussianDistribution:
    """Channels whose KL per element is as given, by their means alone; 2 pictures of 3 x 3 latents."""
    means = torch.tensor(kl_per_element).mul(2).sqrt()[None, :, None, None].expand(2, -1, 3, 3)
    return DiagonalGaussianDistribution(torch.cat([means, torch.zeros_like(means) - 1], dim=1).requires_grad_())


def test_below_its_free_bits_a_channel_has_no_gradient_and_above_the_whole_one():
    from_logvar = (math.exp(-1) - 1 + 1) / 2
    threshold = from_logvar + 0.5
    free, plain = (posterior_of(0.49, 0.51) for _ in range(2))
    counted = kl_above(threshold / math.log(2), free)
    assert counted.item() == pytest.approx(0.01 / 2, rel=1e-3)
    counted.backward()
    (plain.kl().mean() / plain.mean[0].numel()).backward()
    quiet_mean, loud_mean, quiet_logvar, loud_logvar = free.parameters.grad.unbind(1)
    assert quiet_mean.abs().max() == quiet_logvar.abs().max() == 0
    assert loud_mean.abs().min() > 0 and loud_logvar.abs().min() > 0
    torch.testing.assert_close(loud_mean, plain.parameters.grad[:, 1])
    torch.testing.assert_close(loud_logvar, plain.parameters.grad[:, 3])


def test_with_free_bits_nothing_but_the_excess_is_in_the_loss():
    module, batch = autoencoder(kl_weight=1e3), image_batch(CAPTIONS)
    plain = module.losses(batch)
    assert plain["kl"] > 0.01
    module.free_bits = 1e3  # more than it has to say
    torch.testing.assert_close(module.losses(batch)["loss"], plain["reconstruction"])


def test_the_kl_weight_climbs_and_stays_in_each_cycle():
    module = autoencoder(kl_weight=0.2, kl_cycle=8)
    expected = [0.0, 0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2]
    assert [module.kl_weight_at(step) for step in range(16)] == pytest.approx(2 * expected)
    module.kl_cycle = None
    assert {module.kl_weight_at(step) for step in range(16)} == {0.2}


@pytest.mark.parametrize("settings", [{"kl_cycle": 1}, {"kl_cycle": 2.5}, {"free_bits": -1.0}, {"free_bits": math.nan}])
def test_settings_of_the_kl_that_mean_nothing_are_refused(settings):
    with pytest.raises(ConfigError, match=f"stage.{next(iter(settings))} is "):
        autoencoder(**settings)


@pytest.mark.parametrize(("kind", "function"), [("l1", torch.abs), ("mse", torch.square)])
def test_the_reconstruction_loss_is_that_of_a_draw_keyed_by_position(kind, function):
    module, batch = autoencoder(reconstruction=kind, kl_weight=0.0, seed=3), image_batch(first=40)
    posterior = module.network.encode(batch["images"]).latent_dist
    draws = torch.stack([noise(3, "posterior", position, (4, 4, 4)) for position in range(40, 44)])
    pictures = module.network.decode(posterior.mean + posterior.std * draws).sample
    expected = function(pictures - batch["images"]).mean().item()
    assert module.losses(batch)["loss"].item() == pytest.approx(expected, rel=1e-6)


def test_two_micro_batches_lose_what_one_batch_of_the_same_positions_does():
    module = autoencoder()
    whole = module.losses(image_batch(CAPTIONS))
    halves = [module.losses(image_batch(CAPTIONS[:2], first=first)) for first in (0, 2)]
    for name, value in whole.items():
        mean = (halves[0][name] + halves[1][name]) / 2
        assert mean.item() == pytest.approx(value.item(), rel=1e-6)
    elsewhere = {**image_batch(CAPTIONS), "positions": torch.arange(4) + 4}
    assert module.losses(elsewhere)["loss"] != whole["loss"]


def test_measures_are_those_of_the_posterior_mean_over_all_pictures():
    module = autoencoder()
    batches = [image_batch(CAPTIONS), image_batch(CAPTIONS[:2], first=4)]
    measures = module.evaluate(module.network, batches)
    images = torch.cat([batch["images"] for batch in batches])
    with torch.no_grad():
        pictures = module.network.decode(module.network.encode(images).latent_dist.mean).sample.clamp(-1, 1)
    error = (pictures - images).square().mean()
    assert measures["val/psnr"] == pytest.approx(float(10 * torch.log10(4 / error)), rel=1e-5)
    assert measures["val/reconstruction"] == pytest.approx(float((pictures - images).abs().mean()), rel=1e-5)


def test_a_perceptual_term_reaches_the_gradient_but_is_neither_trained_nor_saved():
    torch.manual_seed(1)
    features = nn.Conv2d(3, 4, 3)
    before = deepcopy(features.state_dict())
    settings = {"reconstruction": "mse", "kl_weight": 0.0, "perceptual": lambda images: [features(images)]}
    plain, seeing = autoencoder(**settings), autoencoder(**settings, perceptual_weight=1.0)
    for module in (plain, seeing):
        fit(module, image_batch())
    assert seeing.report.grad_norm > 1.05 * plain.report.grad_norm
    assert all(torch.equal(tensor, before[name]) for name, tensor in features.state_dict().items())
    assert not any("perceptual" in name for name in seeing.state_dict())
    assert seeing.losses(image_batch())["perceptual"] > 0


def test_a_feature_network_is_frozen_when_training_begins():
    features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(0.5))
    module = autoencoder(perceptual=features, perceptual_weight=1.0)
    fit(module, image_batch())
    assert not features.training
    assert not any(parameter.requires_grad for parameter in features.parameters())


def test_the_saved_vae_loads_in_diffusers_and_has_unit_latents(run, held_out):
    vae = AutoencoderKL.from_pretrained(run.model_folder / "vae").eval()
    moments = LatentMoments(vae.config.latent_channels)
    with torch.no_grad():
        for batch in held_out:
            moments.add(vae.encode(batch["images"]).latent_dist)
    assert moments.mean.abs().max() < 1e-4
    assert moments.std * vae.config.scaling_factor == pytest.approx(1, abs=0.001)
    about = json.loads((run.model_folder / "sdscratch.json").read_text())
    assert about["latents"]["std"] == pytest.approx(moments.std, rel=1e-4)


def test_the_saved_vae_draws_what_the_average_of_the_run_draws(run, held_out):
    saved = load_vae(str(run.model_folder))
    network = autoencoder().network.from_config(saved.config)
    network.load_state_dict(run.newest_intact_checkpoint().load()["ema"]["weights"])
    images = held_out[0]["images"]
    with torch.no_grad():
        pictures = [vae.decode(vae.encode(images).latent_dist.mean).sample for vae in (saved, network)]
    torch.testing.assert_close(pictures[0], pictures[1], rtol=0, atol=1e-5)

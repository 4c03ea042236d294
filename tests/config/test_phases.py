"""The shipped phases are the published ones: each number here is written down again, from the table and not from conf/."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest
from omegaconf import DictConfig

from sdscratch.config import build, check_config, compose, config_groups
from sdscratch.errors import ConfigError


class Published(NamedTuple):
    """samples, epochs: as described. steps: of 96. shares: of the sources in every batch."""

    samples: int
    epochs: int
    steps: int
    lr: float
    warmup: int
    gamma: float
    dropout: float
    shares: dict[str, float]


PHASES = {
    "p1_laion_broad": Published(1_315_411, 10, 137_022, 1e-4, 500, 5.0, 0.05, {"laion_broad": 1.0}),
    "p2_laion_refined": Published(213_458, 7, 15_565, 1e-5, 500, 3.0, 0.05, {"laion_refined": 1.0}),
    "p3_synthetic": Published(482_552, 5, 25_133, 1e-5, 500, 5.0, 0.10, {"synthetic": 1.0}),
    "p4_faces": Published(51_786, 7, 3_777, 2e-6, 200, 3.0, 0.15, {"faces": 1.0}),
    "p5_bodies": Published(59_494, 9, 5_578, 1.5e-6, 150, 3.0, 0.10, {"bodies": 1.0}),
    "p6_consolidation": Published(
        250_000, 4, 10_417, 1e-6, 100, 3.0, 0.05, {"laion_refined": 0.6, "faces": 0.2, "bodies": 0.2}
    ),
    "p7_final": Published(
        572_000, 6, 35_750, 1e-6, 150, 3.0, 0.05,
        {"laion_refined": 0.37, "synthetic": 0.44, "faces": 0.09, "bodies": 0.10},
    ),
}  # fmt: skip
OFF = ["model.gradient_checkpointing=false", "stage.channels_last=false"]
REPLAYED = ["p2_laion_refined", "p3_synthetic", "p4_faces", "p5_bodies"]


@cache
def phase(name: str) -> DictConfig:
    """As `sdscratch train phase=NAME` would get it, with data below D."""
    return compose("train", [f"phase={name}", "paths.data=D"])


@pytest.mark.parametrize("name", PHASES)
def test_a_phase_is_as_published(name):
    cfg, published = phase(name), PHASES[name]
    check_config(cfg)
    assert (cfg.name, cfg.max_steps, cfg.optimizer.lr) == (name, published.steps, published.lr)
    assert cfg.lr_schedule.warmup_steps == published.warmup
    assert cfg.objective.min_snr_gamma == published.gamma
    assert cfg.caption_dropout == published.dropout
    assert (cfg.length.samples, cfg.length.epochs) == (published.samples, published.epochs)
    seen = cfg.max_steps * cfg.global_batch_size / published.samples
    assert published.epochs <= seen < published.epochs + 0.01


@pytest.mark.parametrize("name", PHASES)
def test_what_all_phases_have_in_common(name):
    cfg = phase(name)
    assert cfg.dataset.resolution == 512 and cfg.global_batch_size == 96
    trainer = cfg.trainer
    assert 24 * trainer.devices * trainer.accumulate_grad_batches == 96
    assert (trainer.devices, trainer.accumulate_grad_batches, trainer.precision) == (2, 2, "bf16-mixed")
    assert (trainer.strategy._target_, trainer.strategy.exchange) == ("sdscratch.training.DataParallel", "float32")
    optimizer = cfg.optimizer
    assert optimizer._target_ == "torch.optim.AdamW"
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay) == ([0.9, 0.999], 1e-8, 1e-2)
    assert (cfg.stage.max_grad_norm, cfg.stage.ema_decay, cfg.stage.channels_last) == (1.0, 0.9999, True)
    schedule = cfg.objective.noise_schedule
    assert (schedule.kind, schedule.num_train_timesteps) == ("scaled_linear", 1000)
    assert (schedule.beta_start, schedule.beta_end) == (0.00085, 0.012)
    assert cfg.objective.prediction_type == "epsilon"
    assert cfg.model.gradient_checkpointing


@pytest.mark.parametrize("name", PHASES)
def test_the_rate_rises_to_its_peak_and_ends_at_a_tenth(name):
    published, factor = PHASES[name], build(phase(name).lr_schedule)
    assert factor(0) == 1 / published.warmup
    assert factor(published.warmup - 1) == 1
    assert factor(published.steps - 1) == pytest.approx(0.1)


@pytest.mark.parametrize("name", PHASES)
def test_each_phase_has_its_data_below_one_folder(name):
    dataset, shares = phase(name).dataset, PHASES[name].shares
    if name == "p1_laion_broad":
        assert dataset.path == "D/latents_512/laion_broad"
        return
    assert {source: settings.path for source, settings in dataset.sources.items()} == {
        source: f"D/latents_512/{source}" for source in shares
    }
    assert {source: settings.share for source, settings in dataset.sources.items()} == shares
    assert dataset.replay.share == 0


@pytest.mark.parametrize("name", REPLAYED)
def test_earlier_data_can_be_replayed(name):
    cfg = compose("train", [f"phase={name}", "dataset.replay.share=0.2"])
    check_config(cfg)
    assert cfg.dataset.replay.share == 0.2
    earlier = {source for phase in list(PHASES)[: list(PHASES).index(name)] for source in PHASES[phase].shares}
    assert set(cfg.dataset.replay.sources) <= earlier and cfg.dataset.replay.sources


@pytest.mark.parametrize(("name", "steps"), [("s1_autoencoder", 82_214), ("s2_clip", 25_692), ("p8_flow", 11_917)])
def test_the_optional_stages_fit_the_code(name, steps):
    cfg = phase(name)
    check_config(cfg)
    assert (cfg.name, cfg.max_steps) == (name, steps)


def test_the_text_tower_of_s2_fits_the_networks_of_the_phases():
    s2, p1 = phase("s2_clip"), phase("p1_laion_broad")
    assert s2.text_encoder.hidden_size == p1.model.cross_attention_dim
    s1 = phase("s1_autoencoder")
    assert s1.vae.latent_channels == p1.model.in_channels


def test_a_phase_is_a_delta_that_the_command_line_overrules():
    cfg = compose(
        "train", ["phase=p4_faces", "objective.min_snr_gamma=5.0", "optimizer.lr=1.0e-6", "trainer=cpu", *OFF]
    )
    check_config(cfg)
    assert (cfg.objective.min_snr_gamma, cfg.optimizer.lr) == (5.0, 1e-6)
    assert (cfg.trainer.devices, cfg.trainer.precision, cfg.trainer.accelerator) == (1, "32-true", "cpu")
    assert not cfg.model.gradient_checkpointing and not cfg.stage.channels_last


def test_steps_follow_from_epochs_and_the_batch():
    words = ["phase=p1_laion_broad", "global_batch_size=192", "length.epochs=1"]
    assert compose("train", words).max_steps == 6_852
    assert compose("train", [*words, "max_steps=7"]).max_steps == 7


@pytest.mark.parametrize("length", ["length.epochs=0", "length.epochs=many", "length.samples=null"])
def test_no_length_can_be_made_of_anything_else(length):
    with pytest.raises(ConfigError, match="max_steps: .*length."):
        check_config(compose("train", ["phase=p1_laion_broad", length]))


def test_every_phase_that_is_shipped_is_tested_here():
    assert set(config_groups("train")["phase"].options) == {*PHASES, "s1_autoencoder", "s2_clip", "p8_flow"}
    assert list(compose("curriculum", ["name=x"]).phases) == list(PHASES)

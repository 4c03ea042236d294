"""docs/differences.md says what the configuration says."""

from __future__ import annotations

import re
from pathlib import Path

from omegaconf import OmegaConf

from sdscratch.config import compose, config_dir

CHECKOUT = Path(__file__).parents[2]
PAGE = (CHECKOUT / "docs" / "differences.md").read_text()


def test_every_file_that_it_names_exists():
    named = set(re.findall(r"`((?:conf|sdscratch|tests|docs)/[^`]*|LICENSE)`", PAGE))
    assert len(named) > 30
    assert [name for name in sorted(named) if not (CHECKOUT / name).exists()] == []


def test_the_defaults_are_as_it_says():
    cfg = compose("train", ["max_steps=1", "global_batch_size=1", "name=x", "dataset.resolution=512"])
    for key, expected in {
        "model.block_out_channels": [320, 640, 1280, 1280],
        "model.layers_per_block": 2,
        "model.attention_head_dim": 8,
        "model.cross_attention_dim": 768,
        "vae.path": "stabilityai/sd-vae-ft-mse",
        "text_encoder.path": "openai/clip-vit-large-patch14",
        "objective.prediction_type": "epsilon",
        "objective.min_snr_gamma": None,
        "objective.noise_schedule.kind": "scaled_linear",
        "objective.noise_schedule.num_train_timesteps": 1000,
        "objective.noise_schedule.beta_start": 0.00085,
        "objective.noise_schedule.beta_end": 0.012,
        "objective.noise_schedule.timestep_spacing": "trailing",
        "caption_dropout": 0.1,
        "optimizer._target_": "torch.optim.AdamW",
        "optimizer.lr": 1e-4,
        "lr_schedule.warmup_steps": 500,
        "lr_schedule.final": 0.1,
        "stage.ema_decay": 0.9999,
        "stage.max_grad_norm": 1.0,
        "trainer.precision": "32-true",
        "dataset.random_crop": False,
        "dataset.flip": False,
        "sampler.sampler": "ddim",
        "sampler.num_inference_steps": 50,
        "sampler.guidance_scale": 7.5,
    }.items():
        assert OmegaConf.select(cfg, key) == expected, key
    assert (
        compose("train", ["stage=autoencoder", "max_steps=1", "global_batch_size=1", "name=x"]).stage.kl_weight == 1e-3
    )
    flow = compose(
        "train", ["objective=flow_matching", "sampler=flow_euler", "max_steps=1", "global_batch_size=1", "name=x"]
    )
    assert (flow.sampler.sampler, flow.sampler.num_inference_steps, flow.sampler.guidance_scale) == ("euler", 20, 3.0)


def test_the_phases_are_as_it_says():
    phases = [
        compose("train", [f"phase={path.stem}"]) for path in sorted((config_dir() / "phase").glob("p[1-7]_*.yaml"))
    ]
    assert f"{sum(cfg.max_steps for cfg in phases):,} steps over seven phases" in PAGE
    assert {cfg.global_batch_size for cfg in phases} == {96} and {cfg.dataset.resolution for cfg in phases} == {512}
    assert {cfg.objective.min_snr_gamma for cfg in phases} == {3, 5}
    assert (min(cfg.caption_dropout for cfg in phases), max(cfg.caption_dropout for cfg in phases)) == (0.05, 0.15)
    assert {str(cfg.trainer.precision) for cfg in phases} == {"bf16-mixed"}

"""Validation losses compare: between steps, between runs, and whatever machine computes them."""

from __future__ import annotations

import pytest
import torch
from stages import latent_diffusion
from tiny import compose_tiny

from sdscratch.models.encoders import FrozenEncoders, load_text_encoder, load_vae


def validate(cfg) -> dict[str, float]:
    """The measures of the untrained tiny network."""
    module, datamodule = latent_diffusion(cfg)
    return module.evaluate(module.ema.network, datamodule.val_dataloader())


@pytest.fixture(scope="module")
def expected(tmp_path_factory, tiny_data) -> dict[str, float]:
    return validate(compose_tiny(tmp_path_factory.mktemp("runs"), tiny_data))


def test_the_same_weights_have_the_same_losses_at_any_time_and_in_runs_of_any_seed(tiny_config, expected):
    module, datamodule = latent_diffusion(tiny_config("seed=5", "caption_dropout=0.9"))
    for seed in (0, 1):
        torch.manual_seed(seed)
        assert module.evaluate(module.ema.network, datamodule.val_dataloader()) == expected


def test_losses_do_not_depend_on_the_number_of_workers(tiny_config, expected):
    assert validate(tiny_config("dataset.num_workers=2")) == expected


def test_losses_do_not_depend_on_the_micro_batch(tiny_config, expected):
    assert validate(tiny_config("trainer.accumulate_grad_batches=4")) == pytest.approx(expected, rel=1e-6)


def test_losses_are_unweighted_while_training_weights_them(tiny_config, expected):
    cfg = tiny_config("objective.min_snr_gamma=0.5")
    assert validate(cfg) == expected
    module, datamodule = latent_diffusion(cfg)
    losses = module.losses(next(iter(datamodule.train_dataloader())))
    assert losses["loss"] < 0.9 * losses["loss_unweighted"]


def test_the_bins_sum_to_the_whole_and_cover_all_noise_levels(tiny_config, expected):
    _, datamodule = latent_diffusion(tiny_config())
    timesteps = torch.cat([batch["timesteps"] for batch in datamodule.val_dataloader()])
    counts = torch.histc(timesteps.double(), bins=4, min=0, max=1000)
    bins = torch.tensor([expected[f"val/loss_t{name}"] for name in ("000_250", "250_500", "500_750", "750_1000")])
    assert len(timesteps) == 16
    assert counts.min() > 0
    assert float((bins.double() * counts).sum() / 16) == pytest.approx(expected["val/loss"], rel=1e-6)


def test_a_run_writes_the_losses_of_its_average_on_time(tiny_run, tiny_config):
    measured = [row for row in tiny_run.read_metrics() if "val/loss" in row]
    assert [row["step"] for row in measured] == [10, 20, 30]
    module, datamodule = latent_diffusion(tiny_config())
    folder = str(tiny_run.model_folder)
    module.encoders = FrozenEncoders(load_vae(folder), load_text_encoder([], folder))
    for checkpoint, row in zip(tiny_run.checkpoints(), measured[1:], strict=True):
        module.ema.load_state_dict(checkpoint.load()["ema"])
        again = module.evaluate(module.ema.network, datamodule.val_dataloader())
        assert again == {name: value for name, value in row.items() if name.startswith("val/")}

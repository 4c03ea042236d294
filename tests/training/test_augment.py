"""What is changed on the device is a function of seed and position, in training alone."""

from __future__ import annotations

import pytest
import torch
from stages import autoencoder, fit, image_batch, latent_diffusion
from test_resume import assert_same_weights
from torch import Tensor

from sdscratch.commands.train import train
from sdscratch.training import Augment
from sdscratch.training.validation import held_out


def jitter(image: Tensor) -> Tensor:
    """As Kornia does, it draws from torch's own generator."""
    assert image.shape[:2] == (1, 3) and image.min() >= 0 and image.max() <= 1
    return image + 0.2 * torch.randn(1)


def test_a_pictures_changes_do_not_depend_on_its_company():
    augment, batch = Augment([jitter, jitter], seed=3), image_batch()
    together = augment(batch["images"], batch["positions"])
    alone = [
        augment(image[None], position[None])
        for image, position in zip(batch["images"], batch["positions"], strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))
    assert together.min() >= -1 and together.max() <= 1


def test_changes_are_others_at_other_positions_and_seeds_only():
    image = image_batch()["images"][:1].expand(64, -1, -1, -1)
    draws = [Augment([jitter], seed)(image, torch.arange(64))[:, 0, 0, 0] for seed in (0, 1, 0)]
    assert torch.equal(draws[0], draws[2])
    assert len(set(draws[0].tolist())) > 40 and len({*draws[0].tolist(), *draws[1].tolist()}) > 80


def test_torchs_own_generator_is_left_as_it_was():
    batch = image_batch()
    before = torch.get_rng_state()
    Augment([jitter], 0)(batch["images"], batch["positions"])
    assert torch.equal(torch.get_rng_state(), before)


def test_without_transforms_pictures_stay_as_they_are():
    batch = image_batch()
    torch.testing.assert_close(Augment([], 0)(batch["images"], batch["positions"]), batch["images"])


def test_a_stage_trains_on_changed_pictures():
    augment, batch = Augment([jitter], seed=5), image_batch()
    expected = autoencoder().losses({**batch, "images": augment(batch["images"], batch["positions"])})["loss"]
    module = autoencoder(augment=augment)
    fit(module, batch)
    assert module.report.loss == pytest.approx(expected.item(), rel=1e-5)


def test_held_out_pictures_are_not_changed(tiny_config):
    module, datamodule = latent_diffusion(tiny_config())
    module.augment = Augment([jitter], 0)
    module.trainer.datamodule = datamodule  # as fitting sets it
    for ours, plain in zip(held_out(module.trainer, module), datamodule.val_dataloader(), strict=True):
        assert torch.equal(ours["images"], plain["images"])


def test_with_kornia_a_resumed_run_is_the_run_that_was_never_stopped(tiny_config):
    pytest.importorskip("kornia")
    few = ("augment=kornia", "callbacks.previews=null", "callbacks.plots=null", "callbacks.checkpoints.every=2")
    at_once = train(tiny_config("name=at_once", "max_steps=4", "lr_schedule=warmup_constant", *few))
    train(tiny_config("name=in_two", "max_steps=2", "lr_schedule=warmup_constant", *few))
    in_two = train(tiny_config("name=in_two", "max_steps=4", "lr_schedule=warmup_constant", "resume_from=auto", *few))
    assert_same_weights(at_once, in_two)
    plain = train(tiny_config("name=plain", "max_steps=4", "lr_schedule=warmup_constant", *few[1:]))
    with pytest.raises(AssertionError):
        assert_same_weights(at_once, plain)

"""The optimizer does what the configuration says, at every step, whatever a checkpoint brings along."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from math import cos, pi

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from stages import PowerCut, autoencoder, clip, fit, image_batch, small_clip, small_vae, watched
from tiny import SMALLER
from torch import nn

from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.models import UNet
from sdscratch.run_folder import RunFolder
from sdscratch.training.optim import WarmupConstant, WarmupCosine, check_next_step, parameter_groups

SHORT = (*SMALLER, "max_steps=8", "callbacks.checkpoints.every=4")


def cosine(number: int, warmup: int, total: int, final: float) -> float:
    """The factor of the `number`-th step, from 1, as a textbook has it."""
    if number <= warmup:
        return number / warmup
    return final + (1 - final) * 0.5 * (1 + cos(pi * (number - warmup) / (total - warmup)))


def test_warm_up_peak_and_end_are_exact():
    schedule = WarmupCosine(total_steps=100, warmup_steps=10, final=0.1)
    assert [schedule(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert schedule(54) == pytest.approx(0.55)  # half way
    assert schedule(99) == schedule(100) == schedule(10**6) == 0.1
    factors = [schedule(step) for step in range(9, 100)]
    assert factors == sorted(factors, reverse=True)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (1, 1), (5, 5), (5, 0), (3, 500)])
def test_every_length_of_run_and_warm_up_gives_a_rate_between_0_and_the_peak(total, warmup):
    for schedule in (WarmupCosine(total, warmup), WarmupConstant(warmup)):
        assert all(0 < schedule(step) <= 1 for step in range(2 * total))


@pytest.mark.parametrize("wrong", [{"warmup_steps": -1}, {"final": -0.1}, {"final": 2.0}])
def test_a_schedule_below_0_or_above_the_peak_is_refused(wrong):
    with pytest.raises(ConfigError, match=f"lr_schedule.{next(iter(wrong))} is"):
        WarmupCosine(total_steps=10, **wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"optimizer": partial(torch.optim.AdamW, lr=-1.0)}, "Invalid learning rate"),
        ({"max_grad_norm": -1.0}, "max_grad_norm is -1.0"),
        ({"optimizer": torch.optim.LBFGS}, "doesn't support per-parameter options"),
    ],
)
def test_settings_that_would_climb_instead_of_descend_are_refused_when_the_stage_is_made(wrong, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        autoencoder(**wrong)


def test_a_constant_schedule_climbs_and_stays():
    schedule = WarmupConstant(warmup_steps=4)
    assert [schedule(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert WarmupConstant()(0) == 1.0


def test_the_rate_of_every_step_is_the_closed_form_with_accumulation_as_without(tiny_run, tiny_config):
    expected = [1e-3 * cosine(number, 5, 30, 0.1) for number in range(1, 31)]
    assert [row["lr"] for row in tiny_run.read_metrics()] == pytest.approx(expected, rel=1e-12)
    with watched() as (_, rates):
        run = train(tiny_config(*SHORT, "trainer.accumulate_grad_batches=2"))
    assert rates == pytest.approx([1e-3 * cosine(number, 5, 8, 0.1) for number in range(1, 9)], rel=1e-12)
    assert rates[4] == 1e-3
    assert rates[-1] == 1e-4
    assert [row["lr"] for row in run.read_metrics()] == rates


def test_a_resumed_run_has_the_rates_decay_and_momenta_that_are_configured_now(tiny_config):
    """The ones of the checkpoint must never come back: they would, silently, if the optimizer's state were believed."""
    with pytest.raises(PowerCut), watched(cut_after=5):
        train(tiny_config(*SHORT))
    now = ("optimizer={lr: 5.0e-4, weight_decay: 0.3, betas: [0.5, 0.6]}", "lr_schedule=warmup_constant")
    with watched() as (_, rates):
        run = train(tiny_config(*SHORT, "resume_from=auto", *now, "lr_schedule.warmup_steps=6"))
    assert rates == pytest.approx([5e-4 * 5 / 6, 5e-4, 5e-4, 5e-4], rel=1e-12)
    groups = run.newest_intact_checkpoint().load()["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert all(tuple(group["betas"]) == (0.5, 0.6) for group in groups)


def small_unet() -> nn.Module:
    return UNet(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        down_block_types=["CrossAttnDownBlock2D", "DownBlock2D"],
        up_block_types=["UpBlock2D", "CrossAttnUpBlock2D"],
        block_out_channels=[16, 16],
        layers_per_block=1,
        attention_head_dim=2,
        cross_attention_dim=8,
        norm_num_groups=8,
    )


@pytest.mark.parametrize("make", [small_unet, small_vae, lambda: small_clip().clip], ids=["UNet", "VAE", "CLIP"])
def test_matrices_decay_norms_and_biases_do_not_and_nothing_is_missing_or_twice(make):
    network = make()
    decaying, resting = parameter_groups(network, weight_decay=0.01)
    assert decaying["weight_decay"] == 0.01
    assert resting["weight_decay"] == 0.0
    ids = [id(parameter) for group in (decaying, resting) for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in network.parameters())
    spared = {id(parameter) for parameter in resting["params"]}
    norms = [m for m in network.modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)]
    assert norms
    assert all(id(parameter) in spared for norm in norms for parameter in norm.parameters())
    assert all(id(p) in spared for name, p in network.named_parameters() if name.endswith("bias") or "logit" in name)
    layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    assert not any(id(layer.weight) in spared for layer in layers)


def test_frozen_parameters_are_not_given_to_the_optimizer():
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    network[0].requires_grad_(False)
    given = [p for group in parameter_groups(network, 0.01) for p in group["params"]]
    assert {id(p) for p in given} == {id(p) for p in network[1].parameters()}


STATEFUL = [
    torch.optim.AdamW,
    partial(torch.optim.AdamW, amsgrad=True, fused=True),
    torch.optim.Adafactor,
    partial(torch.optim.SGD, momentum=0.9),
]


@pytest.mark.parametrize("make", STATEFUL)
def test_trying_the_next_step_changes_nothing(make):
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    optimizer = make(parameter_groups(network, 0.1), lr=0.1)
    for _ in range(2):
        for parameter in network.parameters():
            parameter.grad = torch.ones_like(parameter)
        before, state = deepcopy(network.state_dict()), deepcopy(optimizer.state_dict())
        check_next_step(optimizer)
        assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
        torch.testing.assert_close(optimizer.state_dict(), state, rtol=0, atol=0)
        optimizer.step()


@pytest.mark.parametrize("wrong", [torch.optim.SparseAdam, partial(torch.optim.AdamW, differentiable=True)])
def test_an_optimizer_that_could_take_no_step_is_refused(wrong):
    with pytest.raises(ConfigError, match="cannot take the next step with these settings"):
        check_next_step(wrong(parameter_groups(nn.Linear(2, 2), 0.0)))


def test_a_setting_that_the_checkpoint_has_no_state_for_is_refused_and_the_run_left_alone(tiny_config):
    with pytest.raises(PowerCut), watched(cut_after=5):
        train(tiny_config(*SHORT))
    run = RunFolder(tiny_config().paths.runs + "/tiny")
    before = {path: path.read_bytes() for path in run.path.glob("*.*")}
    with pytest.raises(ConfigError, match=r"AdamW cannot take .*max_exp_avg_sq"):
        train(tiny_config(*SHORT, "resume_from=auto", "+optimizer.amsgrad=true"))
    assert {path: path.read_bytes() for path in run.path.glob("*.*")} == before


@pytest.mark.parametrize("max_grad_norm", [1e-3, 1e6])
def test_the_norm_that_is_kept_is_torchs_and_a_fused_step_goes_by_clipped_gradients(max_grad_norm):
    module = autoencoder(max_grad_norm=max_grad_norm, optimizer=partial(torch.optim.AdamW, lr=1e-3, fused=True))
    twin = deepcopy(module.network)
    fit(module, image_batch())
    reference = autoencoder()
    reference.network = twin
    reference.losses(image_batch())["loss"].backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in twin.parameters() if p.grad is not None])
    assert module.report.grad_norm == pytest.approx(float(norm), rel=1e-6)
    left = torch.nn.utils.get_total_norm([p.grad for p in module.network.parameters() if p.grad is not None])
    assert left == pytest.approx(min(float(norm), max_grad_norm), rel=1e-3)


def test_a_gradient_scaler_changes_neither_the_norm_nor_the_clipping():
    """16-mixed: a fused optimizer unscales inside its step, which is after the clipping, unless we see to it."""
    plain, scaled = clip(max_grad_norm=0.1), clip(max_grad_norm=0.1)
    fit(plain, image_batch())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    fit(scaled, image_batch(), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert scaled.report.grad_norm == pytest.approx(float(plain.report.grad_norm), rel=0.05)
    left = torch.nn.utils.get_total_norm([p.grad for p in scaled.network.parameters() if p.grad is not None])
    assert left == pytest.approx(0.1, rel=1e-2)

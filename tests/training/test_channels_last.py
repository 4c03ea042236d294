"""`stage.channels_last` lays kernels and pictures out for tensor cores, everywhere and whatever they come from."""

from __future__ import annotations

import pytest
import torch
from stages import latent_diffusion, watched
from tiny import SMALLER

from sdscratch.commands.train import train
from sdscratch.training.initial_weights import InitialWeights

ON = "stage.channels_last=true"


def layouts(tensors) -> set[bool]:
    """Of kernels that are larger than 1 x 1, for which the two layouts differ: whether they are channels_last."""
    kernels = [tensor for tensor in tensors if tensor.ndim == 4 and tensor.shape[1] > 1 and tensor.shape[2] > 1]
    return {kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels}


@pytest.mark.parametrize("words", [[], [ON]])
def test_network_average_and_moments_are_laid_out_alike(tiny_config, tiny_run, words):
    module = latent_diffusion(tiny_config(*words))[0]
    module.settings = {"optimizer._target_": "torch.optim.AdamW"}
    InitialWeights(optimizer="keep").give(module, str(tiny_run.path))
    moments = module.configure_optimizers().state_dict()["state"]
    for tensors in (
        module.network.parameters(),
        module.ema.network.parameters(),
        [value for state in moments.values() for value in state.values()],
    ):
        assert layouts(tensors) == {bool(words)}


def test_a_run_that_changes_its_layout_goes_on_to_nearly_the_same_numbers(tiny_config):
    words = (*SMALLER, "max_steps=4", "callbacks.checkpoints.every=2")
    losses = []
    for name, first, then in (("plain", [], []), ("changed", [], [ON]), ("back", [ON], [])):
        train(tiny_config(*words, f"name={name}", *first, "max_steps=2", "lr_schedule.total_steps=4"))
        with watched() as (positions, _):
            run = train(tiny_config(*words, f"name={name}", *then, "resume_from=auto", "lr_schedule.total_steps=4"))
        assert positions[0] == [8, 9, 10, 11]
        losses.append([row["train/loss"] for row in run.read_metrics()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[2] == pytest.approx(losses[0], rel=1e-4)
    assert layouts(run.checkpoints()[-1].load()["ema"]["weights"].values()) == {False}

"""`stage.channels_last` lays kernels and pictures out for tensor cores, everywhere and whatever they come from."""

from __future__ import annotations

import pytest
import torch
from stages import latent_diffusion, quiet_trainer, watched
from tiny import SMALLER
from torch.utils._python_dispatch import TorchDispatchMode

from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
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


class Convolutions(TorchDispatchMode):
    """Collects what convolutions read, in both directions: pictures, kernels and gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[torch.Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.convolution, torch.ops.aten.convolution_backward):
            self.read += [x for x in args[:3] if isinstance(x, torch.Tensor)]
        return func(*args, **(kwargs or {}))


def test_every_convolution_of_a_step_reads_pictures_kernels_and_gradients_with_channels_innermost(tiny_config):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER, ON))
    batch = next(iter(datamodule.train_dataloader()))
    latents = torch.randn(len(batch["captions"]), 4, 8, 8)  # the VAE, which has a layout of its own, is left out
    with Convolutions() as convolutions:
        loss = module.losses({**batch, "latents": module._laid_out(latents), "noise": module._laid_out(batch["noise"])})
        loss["loss"].backward()
    assert len(convolutions.read) > 50
    assert {x.stride(1) for x in convolutions.read if x.ndim == 4 and x.shape[1] > 1 and x.shape[2] > 1} == {1}
    assert layouts(weight.grad for weight in module.network.parameters()) == {True}


def test_a_smaller_budget_without_a_compiler_keeps_single_layers(tiny_config):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER, "stage.memory_budget=0.5"))
    quiet_trainer().fit(module, datamodule=datamodule)
    assert all(stage.gradient_checkpointing for stage in module.network.down_blocks)
    with pytest.raises(ConfigError, match=r"stage.memory_budget is 2"):
        latent_diffusion(tiny_config("stage.memory_budget=2.0"))
    with pytest.raises(ConfigError, match="stage.compile='fast' is unknown"):
        latent_diffusion(tiny_config("stage.compile=fast"))

"""What the machine does: operations against closed forms, memory, time."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from stages import latent_diffusion
from tiny import SMALLER
from torch import nn
from torch._dynamo.utils import counters

from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.models.encoders import downsampling_factor
from sdscratch.training import Metrics
from sdscratch.training.throughput import Clock, flops_per_sample, memory_gb, peak_tflops


class Linear(nn.Module):
    """A loss of one matrix product per sample, with a frozen one before it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(32, 16, bias=False).requires_grad_(False)
        self.network = nn.Linear(16, 8, bias=False)
        self.device = torch.device("cpu")

    def losses(self, batch: dict) -> dict:
        return {"loss": self.network(self.frozen(batch["x"])).sum()}


def test_operations_are_those_that_are_really_done(tiny_config):
    batch = {"x": torch.randn(5, 32), "positions": torch.arange(5)}
    module, _ = latent_diffusion(tiny_config())
    forward, weights, frozen = 2 * 16 * 8, 2 * 16 * 8, 2 * 32 * 16  # its input needs no gradient
    assert flops_per_sample(module.trainer, Linear(), batch) == forward + weights + frozen


def test_a_step_costs_about_three_forward_passes_of_the_unet_and_leaves_no_trace(tiny_config):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    module, datamodule = latent_diffusion(tiny_config())
    batch = next(iter(datamodule.train_dataloader()))
    count = flops_per_sample(module.trainer, module, batch)
    with FlopCounterMode(display=False) as whole, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module.losses(batch)
    side = 32 // downsampling_factor(module.encoders.vae)
    with FlopCounterMode(display=False) as unet, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        module.network(torch.zeros(4, 4, side, side), batch["timesteps"], module.encoders.text(batch["captions"]))
        text = FlopCounterMode(display=False)
        with text:
            module.encoders.text(batch["captions"])
    trained, frozen = unet.get_total_flops() - text.get_total_flops(), whole.get_total_flops() - unet.get_total_flops()
    assert count * 4 == pytest.approx(3 * trained + frozen + text.get_total_flops(), rel=0.1)
    assert all(parameter.grad is None for parameter in module.parameters())


def test_what_is_to_be_compiled_still_is_after_operations_were_counted(tiny_config):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER))
    batch = next(iter(datamodule.train_dataloader()))
    as_written = flops_per_sample(module.trainer, module, batch)
    module.network.mid_block.resnets[0].compile(backend="eager", dynamic=False)
    torch._dynamo.reset()
    counters.clear()
    try:
        assert flops_per_sample(module.trainer, module, batch) == pytest.approx(as_written, rel=0.02)
        assert counters["stats"]["unique_graphs"] == 0
        module.losses(batch)
        assert counters["stats"]["unique_graphs"] == 1
    finally:
        torch._dynamo.reset()
        counters.clear()


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312),
        ("NVIDIA H100 80GB HBM3", "bf16-mixed", 989),
        ("NVIDIA H100 PCIe", "bf16-true", 756),
        ("NVIDIA H200", "16-mixed", 989),
        ("NVIDIA L40S", "bf16-mixed", 362),
        ("NVIDIA L4", "bf16-mixed", 121),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "bf16-mixed", 504),
        ("NVIDIA GB200", "bf16-mixed", None),
        ("NVIDIA H200", "32-true", None),
        ("cpu", "bf16-mixed", None),
    ],
)
def test_the_peak_is_known_by_the_devices_name_or_not_at_all(device, precision, expected):
    assert peak_tflops(device, precision) == expected


def test_utilisation_is_work_over_peak_and_left_out_where_the_peak_is_unknown(tiny_config, tiny_run):
    run = train(tiny_config(*SMALLER, "max_steps=2", "callbacks.metrics.peak_tflops=0.01", "objective.min_snr_gamma=3"))
    assert run.objective()["value"] is None  # validation is off
    for row in run.read_metrics():
        assert 0 < row["mfu"] < 10 and row["gamma"] == 3
    rate = [row["mfu"] / row["samples_per_second"] for row in run.read_metrics()]
    assert rate[0] == pytest.approx(rate[1], rel=1e-9)
    row = tiny_run.read_metrics()[-1]
    assert "mfu" not in row and "gamma" not in row
    assert 0.05 < row["memory_gb"] < 100


@pytest.mark.parametrize("peak", [0, -1.0, math.nan])
def test_a_peak_must_be_a_number_above_zero(peak):
    with pytest.raises(ConfigError, match="peak_tflops"):
        Metrics(every=1, peak_tflops=peak)


def test_memory_is_what_the_process_holds():
    before = memory_gb(torch.device("cpu"))
    held = torch.ones(int(before * 1e9 / 4) + 50_000_000)  # more than ever before, by 200 MB at least
    assert memory_gb(torch.device("cpu")) >= before + 0.1
    del held


def test_the_clock_counts_samples_and_waiting_and_stands_still_aside(monkeypatch):
    time = SimpleNamespace(seconds=100.0, perf_counter=lambda: time.seconds)
    monkeypatch.setattr("sdscratch.training.throughput.time", time)
    module = SimpleNamespace(seconds_aside=0.0, global_batch_size=4)
    clock = Clock(module, step=10)
    time.seconds += 0.03
    clock.batch_arrived()
    time.seconds += 5.01
    module.seconds_aside += 5.0
    rates = clock.rates(12)
    assert rates == {"samples_per_second": pytest.approx(8 / 0.04), "data_wait": pytest.approx(0.75)}

"""Devices, attention, a pair of processes, room on the disk: tried for real, and told when they are not there."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from sdscratch.commands import footprint
from sdscratch.config import compose
from sdscratch.doctor import machine, pair
from sdscratch.doctor.disk import checkpoint_size, disk
from sdscratch.doctor.finding import Finding
from sdscratch.doctor.pair import Pair

no_gpu = pytest.mark.skipif(machine.device_of("auto") != "cpu", reason="there is a GPU")


def levels(findings) -> dict[str, str]:
    return {finding.about: finding.level for finding in findings}


def test_the_cpu_is_there_and_computes():
    assert levels(machine.devices("cpu", 1))["cpu"] == "ok"
    assert levels(machine.bf16("cpu", "32-true")) == {"bf16": "ok"}
    (finding,) = machine.attention("cpu")
    assert finding.level == "ok" and "math" in finding.found


@no_gpu
def test_a_gpu_that_is_configured_but_not_there_fails():
    (finding,) = [finding for finding in machine.devices("gpu", 1) if finding.level == "fail"]
    assert "trainer=cpu" in finding.remedy


def test_gpus_are_numbered_from_0():
    asked = [1, 2, [0], [1], [0, 2], "auto", -1]
    assert [machine.beyond(OmegaConf.create({"devices": devices}).devices, gpus=1) for devices in asked] == [
        False, True, False, True, True, False, False
    ]  # fmt: skip


def test_attention_that_no_backend_can_compute_fails(monkeypatch):
    def broken(*_):
        raise RuntimeError("No available kernel")

    monkeypatch.setattr(machine, "scaled_dot_product_attention", broken)
    assert levels(machine.attention("cpu")) == {"attention": "fail"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_computes_attention_and_adds_up_by_nccl():
    (finding,) = machine.attention("cuda")
    assert finding.level == "ok" and "flash" in finding.found
    assert levels(machine.bf16("cuda", "bf16-mixed")) == {"bf16": "ok"}
    (finding,) = machine_pair("nccl", members=min(2, torch.cuda.device_count()), seconds=120)
    assert finding.level == "ok"


def machine_pair(*arguments, **settings) -> list[Finding]:
    return Pair(*arguments, **settings).findings()


def test_two_processes_add_up_their_numbers():
    (finding,) = machine_pair("gloo")
    assert finding.level == "ok", finding


def test_processes_that_cannot_find_each_other_fail_with_a_remedy(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuch0")
    (finding,) = machine_pair("gloo", seconds=10)
    assert finding.level == "fail" and "nosuch0" in finding.found and "GLOO_SOCKET_IFNAME" in finding.remedy


@pytest.mark.parametrize("fault", ["hangs", "dies", "wrong"])
def test_a_member_that_fails_is_told_and_leaves_nothing_behind(monkeypatch, fault):
    def member(rank, *_) -> None:
        end = _[-1]
        if fault == "hangs":
            time.sleep(60)
        elif fault == "wrong":
            end.send("the sum is 2.0, not 3.0" if rank else 0.1)
        os._exit(9)

    monkeypatch.setattr(pair, "_member", member)
    start = time.monotonic()
    trying = Pair("gloo", seconds=1.0 if fault == "hangs" else 60.0)
    (finding,) = trying.findings()
    said = {"hangs": "no answer within 1 s", "dies": "its process died", "wrong": "the sum is 2.0, not 3.0"}
    assert (finding.level, finding.found) == ("fail", said[fault])
    assert time.monotonic() - start < 30
    assert not any(process.is_alive() for process in trying.processes)


def test_the_size_of_a_checkpoint_is_known_before_training(tiny_run, tiny_config):
    real = tiny_run.newest_intact_checkpoint().size
    assert checkpoint_size(footprint.network(tiny_config())) == pytest.approx(real, rel=0.1)


@pytest.mark.parametrize(
    ("overrides", "millions"),
    [(["stage=diffusion"], 859.520964), (["stage=autoencoder", "vae=kl_f8"], 83.653863), (["stage=clip"], 101.923329)],
)
def test_full_size_networks_are_measured_without_memory_for_them(overrides, millions):
    network = footprint.network(compose("doctor", overrides))
    assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in network.parameters()) / 1e6 == pytest.approx(millions, rel=1e-6)


def test_every_checkpoint_that_is_kept_counts():
    keeping = "callbacks.checkpoints={every: 1000, keep_last: 3, keep_every: 25000, keep_best: 2}"
    assert footprint.checkpoints(compose("doctor", [keeping, "max_steps=100000"])) == 3 + 4 + 2 + 1
    assert footprint.checkpoints(compose("doctor", ["callbacks.checkpoints=null"])) == 0


def test_further_averages_count_in_every_checkpoint_and_in_their_snapshots():
    words = ["model=unet_tiny", "max_steps=100"]
    alone = footprint.footprint(compose("doctor", words))
    averages = "callbacks.posthoc_ema={every: 30, lengths: [0.05, 0.1, 0.2]}"
    tracked = footprint.footprint(compose("doctor", [*words, "callbacks=posthoc_ema", averages]))
    of_one = sum(4 * weight.numel() for weight in footprint.network(compose("doctor", words)).parameters())
    assert tracked.checkpoint - alone.checkpoint == 3 * of_one and alone.snapshots == 0
    assert tracked.snapshots == 4 * 3 * of_one  # after 30, 60, 90 and 100 steps
    assert tracked.total == tracked.checkpoint * tracked.kept + tracked.snapshots


def test_a_disk_with_room_is_ok_and_left_as_it_was(tmp_path):
    found = list(disk(tmp_path / "runs" / "try1", checkpoint=10**6, kept=3))
    assert levels(found) == {"space": "ok", "disk": "ok"}
    assert "MB/s" in found[1].found and not list(tmp_path.iterdir())


def test_a_disk_without_room_fails(tmp_path):
    assert levels(disk(tmp_path, checkpoint=10**15, kept=1))["space"] == "fail"


def test_a_slow_disk_is_a_warning(tmp_path):
    assert levels(disk(tmp_path, checkpoint=10**14, kept=0)) == {"space": "ok", "disk": "warn"}


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs"])
def test_a_place_that_cannot_be_written_fails(tmp_path, place):
    (tmp_path / "file").touch()
    found = levels(disk(tmp_path / Path(place), checkpoint=1, kept=1))
    assert found["disk"] == "fail"

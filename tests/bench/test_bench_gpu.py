"""The comparison for GPUs keeps to its time, names what it leaves out, and asks of an H200 what an H200 is asked."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import pytest
import torch
from tiny import SMALLEST_UNET

from sdscratch.bench.bounds import BOUNDS, bounded
from sdscratch.bench.encode import PICTURES
from sdscratch.bench.parts import Part, run_parts
from sdscratch.bench.report import JSON, PAGE, Fact, Findings
from sdscratch.bench.sample import STEPS_PER_SECOND
from sdscratch.bench.setting import Setting
from sdscratch.bench.steps import IMAGES, PEAK_MEMORY
from sdscratch.bench.timing import turns
from sdscratch.bench.train import LARGE
from sdscratch.commands.bench import SlowerError, _say_verdict
from sdscratch.commands.bench_gpu import run
from sdscratch.config import compose
from sdscratch.errors import ConfigError
from sdscratch.models import UNet

SETTING = Setting(torch.device("cpu"), batch_size=2, latent_size=8, rounds=2)
AT_512 = replace(SETTING, batch_size=64, latent_size=64, precision="bf16-mixed")


def tiny() -> UNet:
    return UNet(**SMALLEST_UNET)


def test_one_call_measures_every_part_at_its_size_and_leaves_one_table(tmp_path):
    sizes = "batch_size: 2, latent_size: 8, share: 1"
    parts = [f"{{what: {what}, {sizes}}}" for what in ("train", "encode", "sample")]
    parts.append(f"{{what: capped, memory_budget: 0.5, {sizes}}}")
    words = ["device=cpu", "model=unet_tiny", "rounds=2", f"out={tmp_path}", f"parts=[{', '.join(parts)}]"]
    run(compose("bench_gpu", words))
    told = json.loads((tmp_path / JSON).read_text())
    titles = {fact["title"]: fact for fact in told["facts"]}
    place = "64 px, batch 2"
    assert told["about"]["parts"][3]["memory_budget"] == 0.5 and "batch_size" not in told["about"]
    assert {f"{IMAGES}, {place}", f"{PICTURES}, {place}", f"{STEPS_PER_SECOND}, {place}"} <= set(titles)
    assert titles[f"slowdown under a cap of 31 GB, {place}, memory_budget=0.5"]["value"] > -0.9
    assert [c["title"] for c in told["comparisons"]] == [
        f"training step, {place}", f"encoding, {place}", f"sampling, 4 steps, {place}"
    ]  # fmt: skip
    assert all(fact["floor"] is fact["verdict"] is None for fact in told["facts"]), "a CPU is asked nothing of an H200"
    assert f"| {IMAGES}, {place} |" in (tmp_path / PAGE).read_text()


def test_turns_end_when_the_time_is_over_and_not_before_there_are_two_rounds():
    assert list(turns(["a", "b"], 9, until=time.perf_counter() - 1)) == ["a", "b", "b", "a"]
    assert len(list(turns(["a", "b"], 9, until=time.perf_counter() + 100))) == 18


def test_parts_end_in_time_and_those_for_which_none_is_left_are_named():
    often, long = (
        replace(SETTING, rounds=10**6),
        [Part("steps", 2, 8, 10), Part("steps", 1, 8, 10), Part("steps", 3, 8, 0.1)],
    )
    start = time.perf_counter()
    findings = run_parts(long, tiny, often, until=start + 4)
    assert time.perf_counter() - start < 60  # a million rounds would take hours
    measured = [fact.title for fact in findings.facts if fact.title.startswith(IMAGES)]
    assert measured[0] == f"{IMAGES}, 64 px, batch 2"
    assert len(measured) + len(findings.not_measured) == 3

    findings = run_parts(long[:1], tiny, often, until=time.perf_counter() - 1)
    assert findings.not_measured == ["steps, 64 px, batch 2: no time was left for it"] and not findings.facts


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "it does not fit into memory"),
        (RuntimeError("CUDA error: unspecified launch failure"), "it failed, see above: RuntimeError"),
    ],
)
def test_a_part_that_does_not_fit_into_memory_or_fails_is_named_and_the_others_go_on(error, said):
    def network() -> UNet:
        if torch.get_default_device().type != "meta":
            raise error
        return tiny()

    findings = run_parts([Part("train", 2, 8, 1), Part("encode", 2, 4, 1)], network, SETTING, time.perf_counter() + 60)
    assert findings.not_measured == [f"train, 64 px, batch 2: {said}"]
    assert [fact.title for fact in findings.facts] == [f"{PICTURES}, 32 px, batch 2"]


@pytest.mark.parametrize(
    ("title", "value", "setting", "verdict"),
    [
        (IMAGES, 149, AT_512, "slower"),
        (IMAGES, 151, AT_512, "ok"),
        (IMAGES, 149, replace(AT_512, memory_budget=0.5), None),
        (IMAGES, 149, replace(AT_512, batch_size=32), None),
        (IMAGES, 540, replace(AT_512, batch_size=256, latent_size=32), "slower"),
        (PEAK_MEMORY, 81, replace(AT_512, memory_budget=0.5), "slower"),
        (PEAK_MEMORY, 59, AT_512, "ok"),
        (PICTURES, 149, replace(AT_512, batch_size=16), "slower"),
        (STEPS_PER_SECOND, 65, replace(AT_512, batch_size=1), "slower"),
        (STEPS_PER_SECOND, 65, replace(AT_512, precision="32-true"), None),
    ],
)
def test_an_h200_is_asked_for_the_figures_at_the_sizes_that_they_are_meant_for(title, value, setting, verdict):
    findings = Findings(facts=[Fact(title, value, "")])
    (fact,) = bounded(findings, setting, "NVIDIA H200", LARGE + 1).facts
    assert fact.verdict == verdict
    for device, parameters in (("NVIDIA H100 80GB HBM3", LARGE + 1), ("NVIDIA H200", LARGE - 1)):
        assert bounded(findings, setting, device, parameters).facts[0].verdict is None


@pytest.mark.parametrize("bound", [bound for bound in BOUNDS if bound.goal is not None])
def test_a_goal_is_harder_to_reach_than_its_floor(bound):
    assert bound.goal != bound.floor and (bound.goal > bound.floor) == bound.more_is_better


def test_a_fact_below_its_floor_decides_the_verdict(capsys):
    findings = bounded(Findings(facts=[Fact(IMAGES, 75, ""), Fact(PEAK_MEMORY, 60, "GB")]), AT_512, "H200", LARGE)
    with pytest.raises(SlowerError, match="images per second: 75, expected at least 150"):
        _say_verdict(findings, strict=True)
    assert capsys.readouterr().out == "verdict: slower ratio=0.500\n"


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("minutes=-1", "minutes is -1"),
        ("parts=[]", "expected at least one thing"),
        ("parts=[{what: speed, batch_size: 1, latent_size: 8, share: 1}]", "what='speed' is unknown"),
        ("parts=[{what: train, batch_size: 1, latent_size: 0, share: 1}]", "latent_size is 0"),
        ("parts=[{what: train, batchsize: 1, latent_size: 8, share: 1}]", "expected what, batch_size, latent_size"),
        ("device=gpu0", "gpu0"),
    ],
)
def test_what_no_gpu_can_be_asked_is_said_before_anything_is_measured(word, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run(compose("bench_gpu", [f"out={tmp_path}", word]))

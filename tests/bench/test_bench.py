"""Benchmarks tell the faster from the slower, admit when they cannot, and leave a table that says so."""

from __future__ import annotations

import json
import time

import pytest
import torch
from tiny import SMALLEST_UNET
from torch.utils.flop_counter import FlopCounterMode

from sdscratch.bench.apart import joined, step_alone
from sdscratch.bench.peers import DiffusersScript, mosaicml_step
from sdscratch.bench.report import JSON, PAGE, PICTURE, Findings, write_report
from sdscratch.bench.setting import Setting
from sdscratch.bench.steps import IMAGES, OURS, our_steps
from sdscratch.bench.timing import AGAIN, Comparison, Laps, race, turns
from sdscratch.bench.train import LARGE, PEER, bench_train
from sdscratch.commands.bench import SlowerError, _say_verdict, run
from sdscratch.config import compose
from sdscratch.errors import CannotWriteError, ConfigError
from sdscratch.models import UNet

CPU = torch.device("cpu")


def compared(ours: float, again: float = 1.0, floor: float | None = 0.97) -> Comparison:
    laps = Laps(CPU)
    for name, seconds in (("ours", ours), ("peer", 1.0), ("peer, again", again)):
        laps.seconds[name] = laps.wall[name] = [2 * seconds, seconds, 3 * seconds]
    return Comparison.of("step", laps, "ours", "peer", floor, 1.05)


def test_turns_go_forwards_and_backwards():
    assert list(turns(["a", "b"], 3)) == ["a", "b", "b", "a", "a", "b"]


def test_the_least_of_all_turns_decides_and_a_restless_machine_is_no_verdict():
    assert compared(0.8).ratio == pytest.approx(1.25) and compared(0.8).verdict == "ok"
    assert compared(1.25).verdict == "slower"
    assert compared(1.25, floor=None).verdict == "ok"
    assert compared(1.25, again=1.04).verdict == compared(0.8, again=0.96).verdict == "inconclusive"


def test_everyone_has_as_many_turns_and_one_has_two_names():
    ran: list[str] = []
    laps = race({name: lambda name=name: ran.append(name) for name in ("a", "b")}, 4, CPU, null="b")
    assert {name: len(seconds) for name, seconds in laps.seconds.items()} == {"a": 4, "b": 4, "b, again": 4}
    assert ran.count("a") == 1 + 4 and ran.count("b") == 1 + 8


@pytest.mark.parametrize(
    ("ours", "again", "line"),
    [(0.8, 1, "ok ratio=1.25"), (1.25, 1, "slower ratio=0.8"), (0.8, 2, "inconclusive ratio=1.25")],
)
def test_the_last_line_is_the_worst_verdict(ours, again, line, capsys):
    findings = Findings([compared(0.5), compared(ours, again)])
    _say_verdict(findings, strict=False)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"verdict: {line}")


def test_strict_makes_an_error_of_what_is_below_its_floor_only():
    with pytest.raises(SlowerError, match="0.800 times as fast as peer, expected at least 0.97") as error:
        _say_verdict(Findings([compared(1.25)]), strict=True)
    assert error.value.exit_code == 1
    _say_verdict(Findings([compared(1.25, again=2), compared(0.9)]), strict=True)


def test_whole_steps_of_ours_are_timed_in_turns_with_the_others_and_told_in_three_files(tmp_path):
    torch.manual_seed(0)
    setting = Setting(CPU, batch_size=2, latent_size=8, rounds=3)
    findings = bench_train(UNet(**SMALLEST_UNET), setting)
    (step,) = findings.comparisons
    assert (step.ours, step.peer) == (OURS, PEER) and step.floor == 1.05
    assert min(step.seconds.values()) > 0.001, "a turn of ours is a step, not a pause between two"
    assert 0.1 < step.ratio < 10
    shares = [fact.value for fact in findings.facts if fact.title.startswith("of our step")]
    assert len(shares) == 3 and sum(shares) == pytest.approx(1)
    write_report(tmp_path, "sdscratch bench train", setting.about(), findings)
    told = json.loads((tmp_path / JSON).read_text())
    assert told["comparisons"][0]["verdict"] == step.verdict and told["about"]["rounds"] == 3
    assert PEER in (tmp_path / PAGE).read_text() and "Not measured" in (tmp_path / PAGE).read_text()
    assert (tmp_path / PICTURE).stat().st_size > 1000


def test_the_first_step_is_over_when_it_was_taken():
    unet = UNet(**SMALLEST_UNET)
    slow = unet.register_forward_pre_hook(lambda *_: (time.sleep(0.5), slow.remove())[1])
    assert our_steps(unet, Setting(CPU, batch_size=2, latent_size=8, rounds=1)).first > 0.5


def test_ours_are_measured_alone_where_nobody_else_fits_into_memory(monkeypatch):
    def out_of_memory(script: DiffusersScript) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusersScript, "step", out_of_memory)
    findings = bench_train(UNet(**SMALLEST_UNET), Setting(CPU, batch_size=2, latent_size=8, rounds=2))
    assert not findings.comparisons and findings.facts[0].title == IMAGES


def test_contenders_that_are_alone_in_their_processes_are_joined_into_one_comparison():
    """Here in one process, one after the other: a process takes seconds to begin."""
    setting, config = Setting(CPU, batch_size=2, latent_size=8, rounds=2), dict(UNet(**SMALLEST_UNET).config)
    ran = {name: [step_alone(config, setting, 1, None, name)] * 2 for name in (OURS, PEER, AGAIN.format(PEER))}
    findings = joined(ran, config, LARGE + 1, setting)
    (step,) = findings.comparisons
    assert (step.ours, step.peer, step.floor, step.goal) == (OURS, PEER, 1.12, 1.20)
    assert set(step.seconds) == set(ran) and 0.1 < step.ratio < 10 and 0.1 < step.null < 10
    facts = {fact.title: fact.value for fact in findings.facts}
    assert facts[IMAGES] == pytest.approx(2 / step.seconds[OURS])
    assert all(0.1 < facts[f"memory of the process, {name}"] < 10 for name in ran), "in GB"


def test_the_steps_that_only_a_gpu_is_asked_for_run():
    setting = Setting(CPU, batch_size=1, latent_size=8, rounds=1)
    script = DiffusersScript(dict(UNet(**{**SMALLEST_UNET, "cross_attention_dim": 768}).config), setting)
    before = [weight.clone() for weight in script.unet.parameters()]
    script.step_on_line()
    assert not all(torch.equal(old, new) for old, new in zip(before, script.unet.parameters(), strict=True))
    step = mosaicml_step(dict(UNet(**SMALLEST_UNET).config), setting)
    with FlopCounterMode(display=False) as work:
        step()
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        UNet(**SMALLEST_UNET)(torch.randn(1, 4, 8, 8), torch.tensor([1]), torch.randn(1, 77, 16))
    assert work.get_total_flops() > 2.5 * forward.get_total_flops()


def test_what_no_benchmark_can_time_is_refused():
    with pytest.raises(ConfigError, match="device=meta cannot be timed"):
        Setting(torch.device("meta"), 2, 8, 3)
    with pytest.raises(
        ConfigError, match="device=cuda:1 cannot be timed, .* set CUDA_VISIBLE_DEVICES=1 and device=cuda"
    ):
        Setting(torch.device("cuda:1"), 2, 8, 3)
    with pytest.raises(ConfigError, match="rounds is 0"):
        Setting(CPU, 2, 8, 0)


@pytest.mark.parametrize(
    ("words", "error", "message"),
    [
        (["device=gpu0"], ConfigError, "device=gpu0 is unknown"),
        (["what=speed"], ConfigError, "what='speed' is unknown"),
        (["compile=fast"], ConfigError, "compile='fast' is unknown"),
        (
            ["what=unet", "model=unet_sd_from_scratch", "model.block_out_channels=[32]", "model.attention_levels=[]"],
            ConfigError,
            "diffusers has not",
        ),
        (["out=/dev/null/x"], CannotWriteError, "cannot write into /dev/null/x"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is(words, error, message, tmp_path):
    with pytest.raises(error, match=message):
        run(compose("bench", [f"out={tmp_path}", "device=cpu", *words]))

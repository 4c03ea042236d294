"""A run that was stopped and resumed is the run that was never stopped."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from stages import PowerCut, watched
from tiny import BARE, SMALLER, compose_tiny
from torch.utils._pytree import tree_leaves

from sdscratch.cli import main
from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder
from sdscratch.training import WarmupCosine
from sdscratch.training.plots import draw_curves

MACHINE = ("samples_per_second", "data_wait", "memory_gb", "mfu")
"""What the clock says, which no two runs share."""


def assert_same(one: Any, other: Any, where: str = "checkpoint") -> None:
    """Equal to the last bit, in every tensor and number."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_same(one[name], other[name], f"{where}[{name!r}]")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{number}]")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_weights(one: RunFolder, other: RunFolder) -> None:
    """And averages, optimizer state, counters."""
    contents = [run.newest_intact_checkpoint().load() for run in (one, other)]
    for part in ("global_step", "state_dict", "ema", "optimizer_states", "callbacks", "samples_seen"):
        assert_same(contents[0][part], contents[1][part], part)


def rows(run: RunFolder) -> list[dict[str, float]]:
    """metrics.csv without the clock's columns."""
    return [{name: value for name, value in row.items() if name not in MACHINE} for row in run.read_metrics()]


def stopped(cfg, micro_batches: int) -> None:
    with pytest.raises(PowerCut), watched(cut_after=micro_batches):
        train(cfg)


def test_30_steps_are_10_and_the_20_that_a_resumed_run_adds(tiny_run, tiny_config):
    stopped(tiny_config(*BARE), micro_batches=13)
    run = RunFolder(tiny_config().paths.runs + "/tiny")
    assert run.newest_intact_checkpoint().step == 10
    assert [row["step"] for row in run.read_metrics()] == list(range(1, 14))
    with watched() as (positions, rates):
        train(tiny_config(*BARE, "resume_from=auto"))
    assert positions == [list(range(4 * step, 4 * step + 4)) for step in range(10, 30)]
    assert rates == [row["lr"] for row in run.read_metrics()][10:]
    assert_same_weights(run, tiny_run)
    assert rows(run) == rows(tiny_run)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (1, 4)])
def test_another_accumulation_at_a_resume_reads_the_same_positions_in_every_step(tiny_config, before, after):
    """As after the loss of a device. An odd number of steps lies behind, which another counting might halve."""
    at_first = tiny_config(*SMALLER, "max_steps=3", f"trainer.accumulate_grad_batches={before}")
    run = train(at_first)
    then = tiny_config(*SMALLER, "max_steps=6", f"trainer.accumulate_grad_batches={after}", "resume_from=auto")
    with watched() as (positions, _):
        train(then)
    size = 4 // after
    assert positions == [list(range(first, first + size)) for first in range(12, 24, size)]
    straight = train(tiny_config(*SMALLER, "max_steps=6", "name=straight"))
    losses = [[row["train/loss"] for row in r.read_metrics()][3:] for r in (run, straight)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


ACCUMULATED = (
    *SMALLER,
    "trainer.accumulate_grad_batches=2",
    "max_steps=8",
    "callbacks.checkpoints={every: 4, keep_last: 9}",
    "callbacks.metrics.every=3",
    "lr_schedule=warmup_constant",
    "lr_schedule.warmup_steps=3",
)


@pytest.fixture(scope="module")
def accumulated(tmp_path_factory, tiny_data) -> RunFolder:
    """8 steps of two micro-batches, never stopped; metrics every third step, checkpoints every fourth."""
    return train(compose_tiny(tmp_path_factory.mktemp("runs"), tiny_data, *ACCUMULATED))


def test_a_run_that_was_stopped_between_two_micro_batches_of_a_step_takes_that_step_again(accumulated, tiny_config):
    stopped(tiny_config(*ACCUMULATED), micro_batches=11)
    with watched() as (positions, rates):
        run = train(tiny_config(*ACCUMULATED, "resume_from=auto"))
    assert positions == [[p, p + 1] for p in range(16, 32, 2)]
    assert len(rates) == 4
    assert_same_weights(run, accumulated)
    assert rows(run) == rows(accumulated)
    assert [c.step for c in run.checkpoints()] == [4, 8]


def test_checkpoints_lie_on_step_boundaries_with_accumulation_too(accumulated):
    assert [checkpoint.step for checkpoint in accumulated.checkpoints()] == [4, 8]
    for checkpoint in accumulated.checkpoints():
        content = checkpoint.load()
        assert content["global_step"] == checkpoint.step
        assert content["ema"]["num_updates"] == checkpoint.step
        batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]
        assert batches["ready"] == 2 * checkpoint.step
        assert {int(state["step"]) for state in content["optimizer_states"][0]["state"].values()} == {checkpoint.step}


def test_a_finished_run_goes_on_to_more_steps_as_if_it_had_been_asked_for_them_at_once(accumulated, tiny_config):
    train(tiny_config(*ACCUMULATED, "max_steps=4"))
    run = train(tiny_config(*ACCUMULATED, "resume_from=auto"))
    assert_same_weights(run, accumulated)


def test_a_run_that_was_stopped_before_its_first_checkpoint_starts_again_with_an_empty_record(accumulated, tiny_config):
    stopped(tiny_config(*ACCUMULATED), micro_batches=7)
    run = train(tiny_config(*ACCUMULATED, "resume_from=auto"))
    assert rows(run) == rows(accumulated)


def test_a_run_that_was_stopped_before_it_wrote_its_model_writes_it_when_resumed(accumulated, tiny_config):
    run = RunFolder(tiny_config().paths.runs + "/tiny")
    shutil.copytree(accumulated.path, run.path)
    shutil.rmtree(run.model_folder)
    run.set_state(status="running")
    train(tiny_config(*ACCUMULATED, "resume_from=auto"))
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert (run.model_folder / weights).read_bytes() == (accumulated.model_folder / weights).read_bytes()
    assert run.state()["status"] == "done"


# A run goes on as the run that it is

FEW = (*SMALLER, "max_steps=2", "callbacks.checkpoints={every: 2, keep_last: 9}", "dataset.count=8")


@pytest.fixture
def short(tiny_config, tmp_path) -> RunFolder:
    """Two steps, on data of its own."""
    return train(tiny_config(*FEW, f"paths.data={tmp_path}"))


def resume(run: RunFolder, *overrides: str) -> int:
    return main(["resume", str(run.path), "max_steps=4", *overrides])


def content_of(run: RunFolder) -> dict:
    return {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("overrides", "lines"),
    [
        (["seed=1"], ["seed: 0 -> 1", "text_encoder.fingerprint: ", "vae.fingerprint: "]),  # whose weights it draws
        (["global_batch_size=8"], ["global_batch_size: 4 -> 8"]),
        (["model.block_out_channels=[32, 16]"], ["model.block_out_channels: [16, 16] -> [32, 16]"]),
        (["dataset.drawn_with=7", "dataset.path=${paths.data}/other"], ["dataset.fingerprint: "]),
        (
            ["text_encoder.num_hidden_layers=2"],
            ["text_encoder.fingerprint: ", "text_encoder.num_hidden_layers: 1 -> 2"],
        ),
    ],
)
def test_another_run_is_refused_with_what_differs_and_nothing_is_touched(short, capsys, overrides, lines):
    before = content_of(short)
    capsys.readouterr()
    assert resume(short, *overrides) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith(f"sdscratch: {short.path} would be another run than it was.")
    assert [found.strip()[: len(line)] for found, line in zip(said[1:], lines, strict=True)] == lines
    assert content_of(short) == before


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trainer=ddp", "a run keeps its trainer, of which single keys can be set"),
        ("optimizer.lr=[", "optimizer.lr=[: [ is no value: while parsing"),
        ("phase=p4_faces", "expected key=value with a key of"),
    ],
)
def test_what_a_recipe_does_not_know_is_refused_in_one_line(tiny_run, capsys, word, said):
    before = content_of(tiny_run)
    assert main(["resume", str(tiny_run.path), "max_steps=40", word]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert content_of(tiny_run) == before


def test_who_insists_is_obeyed_and_samples_are_counted_as_they_were_seen(short):
    assert resume(short, "global_batch_size=8", "resume.allow_change=[global_batch_size]") == 0
    assert [(row["step"], row["samples_seen"]) for row in short.read_metrics()] == [(1, 4), (2, 8), (3, 16), (4, 24)]
    assert [c.samples_seen for c in short.checkpoints()] == [8, 24]
    changed = {change["key"]: (change["step"], change["old"], change["new"]) for change in short.lineage()["changes"]}
    assert changed["global_batch_size"] == (2, 4, 8)
    assert main(["resume", str(short.path), "max_steps=5"]) == 0  # as it has become
    assert short.state()["samples_seen"] == 32


def test_a_network_of_another_shape_is_refused_even_to_who_insists(short, capsys):
    assert resume(short, "model.block_out_channels=[32, 16]", "resume.allow_change=[model]") == 2
    assert "another network than the one configured" in capsys.readouterr().err


def test_what_may_change_is_printed_and_recorded_with_the_step_from_which_it_holds(short, capsys):
    assert resume(short, "optimizer.lr=2.0e-3") == 0
    assert "  changed: optimizer.lr: 0.001 -> 0.002\n" in capsys.readouterr().out
    assert {"step": 2, "key": "optimizer.lr", "old": 0.001, "new": 0.002} in short.lineage()["changes"]
    assert short.read_metrics()[-1]["lr"] == 2e-3 * WarmupCosine(4, 5, 0.1)(3)


def test_changes_that_were_lost_with_their_steps_are_no_part_of_the_record(short):
    assert resume(short, "optimizer.lr=2.0e-3") == 0
    short.checkpoint_path(4).write_bytes(b"damaged")
    assert main(["resume", str(short.path), "max_steps=5", "optimizer.lr=1.0e-3"]) == 0
    assert [(change["step"], change["key"]) for change in short.lineage()["changes"]] == [(2, "max_steps")]


def test_moments_in_8_bits_are_resumed_to_the_last_bit(tiny_config):
    pytest.importorskip("bitsandbytes")
    words = (*BARE, "optimizer=adamw_8bit", "lr_schedule=warmup_constant", "callbacks.checkpoints.every=2")
    at_once = train(tiny_config(*words, "name=at_once", "max_steps=4"))
    train(tiny_config(*words, "name=in_two", "max_steps=2"))
    in_two = train(tiny_config(*words, "name=in_two", "max_steps=4", "resume_from=auto"))
    assert_same_weights(at_once, in_two)
    optimizer = at_once.newest_intact_checkpoint().load()["optimizer_states"][0]
    assert any(leaf.dtype == torch.uint8 for leaf in tree_leaves(optimizer) if isinstance(leaf, torch.Tensor))


def test_a_finished_run_is_not_taken_for_another_one(tiny_config, capsys):
    train(tiny_config(*SMALLER, "max_steps=2"))
    for change in ("seed=5", "model.layers_per_block=3"):
        with pytest.raises(ConfigError, match="would be another run than it was"):
            train(tiny_config(*SMALLER, "max_steps=2", "resume_from=auto", change))
    train(tiny_config(*SMALLER, "max_steps=2", "resume_from=auto", "optimizer.lr=1.0e-5"))
    assert "is finished: nothing to do" in capsys.readouterr().out


def test_a_lost_model_folder_is_written_again(tiny_config):
    run = train(tiny_config(*SMALLER, "max_steps=2"))
    weights = (run.model_folder / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    shutil.rmtree(run.model_folder)
    train(tiny_config(*SMALLER, "max_steps=2", "resume_from=auto"))
    assert (run.model_folder / "unet/diffusion_pytorch_model.safetensors").read_bytes() == weights
    assert len(run.read_metrics()) == 2 and run.state()["status"] == "done"


def test_a_resumed_run_leaves_its_tokenizer_alone(tiny_config):
    run = train(tiny_config(*SMALLER, "max_steps=1"))
    files = {path: path.stat().st_ino for path in sorted((run.path / "tokenizer").iterdir())}
    train(tiny_config(*SMALLER, "max_steps=2", "resume_from=auto"))
    assert {path: path.stat().st_ino for path in sorted((run.path / "tokenizer").iterdir())} == files


@pytest.mark.parametrize("line", ["garbage,1,2", "31,abc,1", "1" + ",1" * 60])
def test_a_damaged_line_of_the_table_costs_that_line(tiny_config, line):
    run = train(tiny_config(*SMALLER, "max_steps=2"))
    run.metrics_file.write_text(run.metrics_file.read_text() + line + "\n")
    train(tiny_config(*SMALLER, "max_steps=3", "resume_from=auto"))
    draw_curves(run)
    assert [row["step"] for row in run.read_metrics()] == [1, 2, 3]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("+trainer.limit_train_batches=2", "trainer.limit_train_batches cannot be set"),
        ("+trainer.max_time=00:00:01:00", "trainer.max_time cannot be set"),
        ("+trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val cannot be set"),
        ("trainer.max_steps=1", "trainer.max_steps is 1, but has to be 2"),
        ("trainer.enable_checkpointing=true", "trainer.enable_checkpointing is True, but has to be False"),
        ("trainer.precision=bf16-true", "trainer.precision is bf16-true; expected 32-true, bf16-mixed, 16-mixed"),
        ("model.out_channels=8", "model.out_channels is 8, but the frozen encoders give 4"),
    ],
)
def test_what_would_break_the_promises_of_a_run_is_refused(tmp_path, tiny_data, capsys, words, said):
    place = [f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "max_steps=2"]
    assert main(["train", "experiment=tiny", *place, words]) == 2
    assert said in capsys.readouterr().err

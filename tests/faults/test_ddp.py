"""Two ranks are one run: the same numbers as one rank's, whoever of them is killed."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from harness import LONG, ForkServer, differing_rows, rows, state_hashes, wait_until
from PIL import Image
from ranks import Job
from safetensors.torch import load_file

from sdscratch.data.shapes import write_shapes
from sdscratch.run_folder import RunFolder
from sdscratch.training.posthoc_ema import snapshot_folder

KILLS = 30 if LONG else 6
RUN = (
    "max_steps=16",
    "dataset.num_workers=1",
    "trainer.accumulate_grad_batches=2",
    "callbacks.checkpoints={every: 3, keep_last: 2}",
    "callbacks=posthoc_ema",
    "callbacks.posthoc_ema.every=4",
    "callbacks.metrics.every=2",
)
GRADIENT = (
    "max_steps=1",
    "optimizer._target_=torch.optim.SGD",
    *(f"~optimizer.{name}" for name in ("betas", "eps", "fused")),
    "optimizer={lr: 1.0, weight_decay: 0.0}",
    "lr_schedule=warmup_constant",
    "lr_schedule.warmup_steps=0",
    "stage.max_grad_norm=1.0e9",
    "global_batch_size=8",
    "callbacks.validation={_target_: sdscratch.training.Validation, every: 1}",
)
STAGES = {
    "diffusion": (),
    "autoencoder": ("stage=autoencoder", "vae=kl_tiny"),
    "clip": ("stage=clip", "text_encoder=clip_tiny"),
}


def snapshots(run: RunFolder) -> dict[str, bytes]:
    """Of the post-hoc averages, file by file."""
    return {path.name: path.read_bytes() for path in snapshot_folder(run).glob("step_*")}


def finished(attempts) -> None:
    for attempt in attempts:
        assert attempt.rc == 0, attempt.output


@pytest.fixture(scope="module")
def reference(server: ForkServer, train_words, tmp_path_factory) -> tuple[RunFolder, float]:
    """Two ranks that nobody kills, and how long they took."""
    runs = tmp_path_factory.mktemp("reference")
    attempts = Job(server, train_words(runs, *RUN)).wait()
    finished(attempts)
    return RunFolder(runs / "tiny"), max(attempt.seconds for attempt in attempts)


def test_killed_at_random_times_one_rank_or_all_no_row_and_no_bit_differs(server, train_words, reference, tmp_path):
    times, kills, number = Random(0), 0, 0
    whole, seconds = reference
    while kills < KILLS:
        number, before = number + 1, kills
        run = RunFolder(tmp_path / f"run{number}")
        words = train_words(tmp_path, *RUN, f"name=run{number}", "resume_from=auto")
        done = False
        while not done:
            job = Job(server, words)
            if kills < KILLS and not job.ends_within(times.uniform(0.3, 0.9) * seconds):
                kills += 1
                have_met = "samples per step" in job.ranks[0].output()
                job.kill(rank=None if kills % 2 else times.randrange(2))
                if not have_met:  # a rank waits long for one that never came; their launcher ends it
                    job.kill()
            attempts = job.wait(timeout=120 + 5 * seconds)  # a rank that is left alone ends by itself
            done = any(attempt.rc == 0 for attempt in attempts)  # the other one may have been killed on its way out
            assert not done or run.state()["status"] == "done", [attempt.output for attempt in attempts]
        if kills == before:  # the machine was busier when the reference ran: kill the next ones earlier
            seconds /= 2
        assert differing_rows(run, whole) == 0
        assert state_hashes(run) == state_hashes(whole)
        assert len(snapshots(whole)) == 8 and snapshots(run) == snapshots(whole)


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_have_the_gradient_and_the_measures_of_one_with_twice_the_batch(server, train_words, tmp_path, stage):
    """One step of plain descent at rate 1: the weights are the first ones minus the gradient.

    The two ranks accumulate it over two micro-batches, but for CLIP, whose pairs are compared within one.
    """
    tiny = [word for word in train_words(tmp_path, *GRADIENT) if stage == "diffusion" or not word.startswith("model.")]
    if stage != "diffusion":
        tiny = [w for w in tiny if not w.startswith(("experiment=",))] + [
            "dataset=shapes",
            "dataset={count: 60, val_count: 15, resolution: 32, val_samples: 15}",
            "trainer=cpu",
            "logger=none",
            *STAGES[stage],
        ]
    parts = 1 if stage == "clip" else 2
    job = Job(server, [*tiny, "name=two", f"trainer.accumulate_grad_batches={parts}"])
    finished([server.attempt([*tiny, "name=one"]), *job.wait()])
    one, two = (RunFolder(tmp_path / name) for name in ("one", "two"))
    contents = [run.newest_intact_checkpoint().load() for run in (one, two)]
    scale = max(float(tensor.abs().max()) for tensor in contents[0]["state_dict"].values())
    for name, tensor in contents[0]["state_dict"].items():
        torch.testing.assert_close(contents[1]["state_dict"][name], tensor, rtol=1e-4, atol=2e-6 * scale, msg=name)
    for name, value in rows(one)[-1].items():
        assert rows(two)[-1][name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    assert any(name.startswith("val/") for name in rows(one)[-1])


def test_two_ranks_that_exchange_bfloat16_have_that_gradient_to_its_eight_bits(server, train_words, tmp_path):
    words = train_words(tmp_path, *GRADIENT, "callbacks.validation=null")
    for exchange in ("float32", "bfloat16"):
        finished(Job(server, [*words, f"name={exchange}", f"trainer.strategy.exchange={exchange}"]).wait())
    exact, rounded = (
        RunFolder(tmp_path / name).newest_intact_checkpoint().load()["state_dict"] for name in ("float32", "bfloat16")
    )
    scale = max(float(tensor.abs().max()) for tensor in exact.values())
    off = max(float((rounded[name] - tensor).abs().max()) for name, tensor in exact.items())
    assert 1e-6 * scale < off < 2**-7 * scale


def test_two_ranks_measure_each_source_of_a_mixture_as_one_does(server, train_words, tiny_data, tmp_path):
    write_shapes(tiny_data / "shapes_32_64", 64, 16, 32)
    parts = [
        f"{part}: {{path: {tiny_data}/shapes_32_64/{part}, share: {n}}}" for n, part in enumerate(("train", "val"), 1)
    ]
    data = ("dataset=mixture", "~dataset.count", "~dataset.val_count", "dataset.holdout=0.3", "dataset.val_samples=11")
    words = train_words(tmp_path, *GRADIENT, *data, f"dataset.sources={{{', '.join(parts)}}}")
    finished([server.attempt([*words, "name=one"]), *Job(server, [*words, "name=two"]).wait()])
    one, two = (rows(RunFolder(tmp_path / name))[-1] for name in ("one", "two"))
    assert {"val/loss/train", "val/loss/val"} < one.keys() == two.keys()
    for name, value in one.items():
        assert two[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name


def test_world_sizes_one_and_two_lose_the_same_over_a_hundred_steps(server, train_words, tmp_path):
    words = train_words(tmp_path, "max_steps=100", "callbacks.checkpoints=null")
    finished([server.attempt([*words, "name=one"]), *Job(server, [*words, "name=two"]).wait()])
    one, two = ([row["train/loss"] for row in rows(RunFolder(tmp_path / name))] for name in ("one", "two"))
    assert len(one) == len(two) == 100
    assert two == pytest.approx(one, rel=1e-5)


def test_a_run_goes_on_with_another_number_of_ranks(server, train_words, reference, tmp_path):
    words = train_words(tmp_path, *RUN, "resume_from=auto")
    job = Job(server, words)
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: bool(run.checkpoints()))
    job.kill()
    job.wait()
    finished([server.attempt(words)])
    losses = [[row["train/loss"] for row in rows(folder)] for folder in (run, reference[0])]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_gone_ends_the_other_at_once(server, train_words, tmp_path, rank):
    job = Job(server, train_words(tmp_path, *RUN, "max_steps=100000"))
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: len(run.read_metrics()) >= 2)
    job.kill(signal.SIGKILL, rank)
    left = job.ranks[1 - rank]
    assert left.ends_within(60)  # it would wait for half an hour
    assert left.wait().rc not in (0, 143)
    job.ranks[rank].wait()


def test_the_second_job_in_a_run_folder_is_refused_on_all_ranks(server, train_words, tmp_path: Path):
    first = Job(server, train_words(tmp_path, *RUN, "max_steps=100000"))
    run = RunFolder(tmp_path / "tiny")
    wait_until(lambda: len(run.read_metrics()) >= 2)
    for attempt in Job(server, train_words(tmp_path, *RUN, "resume_from=auto")).wait():
        assert attempt.rc == 2 and "is in use by process" in attempt.output, attempt.output
    first.kill()
    first.wait()


@pytest.mark.parametrize(("accumulate", "bucket_mb"), [(1, 25), (2, 0.05)])
def test_a_step_costs_one_exchange_of_gradients_begun_before_all_are_there_and_a_small_one_however_much_is_accumulated(
    server, train_words, tmp_path, accumulate, bucket_mb
):
    script, out = Path(__file__).with_name("collectives.py"), tmp_path / "steps.json"
    words = train_words(tmp_path, "max_steps=6", "callbacks.checkpoints=null")
    words += [f"trainer.accumulate_grad_batches={accumulate}", f"+trainer.strategy.bucket_cap_mb={bucket_mb}"]
    finished(Job(server, ["python", str(script), str(out), *words]).wait(300))  # the profile takes long to be read
    # What comes before the trial of a step, before the first one, and after the last.
    _, _, first, *steps, _ = json.loads(out.read_text())
    assert len(steps) == 4
    weights = load_file(tmp_path / "tiny/model/unet/diffusion_pytorch_model.safetensors").values()
    gradients, agreement = sum(weight.numel() for weight in weights), 2 + 3 + 2  # losses, counts, whose loss is bad
    for said in steps:
        *buckets, last = said["sizes"]
        assert said["asked"] == ["c10d::allreduce_"] * (len(buckets) + 1), (first, steps)
        assert (sum(buckets), last) == (gradients, agreement), (first, steps)
        if bucket_mb == 25:
            assert len(buckets) == 1, "they fit"
        else:
            assert len(buckets) > 4 and said["early"] >= len(buckets) - 1, "only the last bucket waits for the end"


def test_two_ranks_draw_the_previews_of_one(server, train_words, tmp_path):
    """Of weights that do not move, so that nothing else could differ; an odd number of prompts."""
    previews = "callbacks.previews={_target_: sdscratch.training.Previews, every: 1}"
    prompts = "stage.preview_prompts=[a red circle, a blue ring, a green square]"
    words = train_words(tmp_path, "max_steps=1", "optimizer.lr=0.0", "optimizer.weight_decay=0.0", previews, prompts)
    finished([server.attempt([*words, "name=one"]), *Job(server, [*words, "name=two"]).wait()])
    one, two = (np.array(Image.open(tmp_path / name / "samples/step_00000001/ema.png")) for name in ("one", "two"))
    assert one.shape == two.shape and one.std() > 20
    assert np.abs(one.astype(int) - two.astype(int)).max() <= 1

"""Numbers that are not finite, and spikes, on any rank: at most their own step is lost, and a run resumes through them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from harness import LONG, ForkServer, differing_rows, rows, state_hashes
from ranks import Job

from sdscratch.run_folder import RunFolder

INJECTIONS = 30 if LONG else 4
STEPS = 10
RUN = (
    f"max_steps={STEPS}",
    "trainer.accumulate_grad_batches=2",
    "callbacks.checkpoints={every: 2, keep_last: 99}",
    "callbacks.guard={spike_window: 4, spike_deviations: 30.0, skip_spikes: true, in_a_row: 2, rewinds: 2}",
)


@pytest.fixture
def run_to_end(server: ForkServer) -> Callable[..., int]:
    """`run_to_end(words, world, inject)`: the exit code on which all ranks end."""

    def run_to_end(words: list[str], world: int, inject: str) -> int:
        env = {"SDS_INJECT": inject}
        attempts = Job(server, words, world, env).wait() if world > 1 else [server.attempt(words, env=env)]
        (rc,) = {attempt.rc for attempt in attempts}
        assert all("Traceback" not in attempt.output for attempt in attempts), attempts[0].output
        return rc

    return run_to_end


def assert_finite(value: Any) -> None:
    if isinstance(value, dict):
        for item in value.values():
            assert_finite(item)
    elif isinstance(value, torch.Tensor) and value.is_floating_point():
        assert value.isfinite().all()


def went_back_to(run: RunFolder, step: int, copy: Path) -> RunFolder:
    """A copy of a finished run as it was at a checkpoint, killed before the next one."""
    again = RunFolder(shutil.copytree(run.path, copy))
    again.forget_checkpoints_after(step)
    again.set_state(status="running", step=step)
    return again


def test_a_bad_step_is_not_taken_and_nothing_else_is_lost(server, train_words, run_to_end, tmp_path):
    draws = Random(2)
    for number in range(INJECTIONS):
        kind = ["nan", "inf", "grad", "spike"][number % 4]
        step, world = draws.randrange(5, STEPS), 1 + number % 2
        rank = draws.choice(["", *(f":{rank}" for rank in range(world))])
        fault = f"{kind}@{step}{rank}"
        words = train_words(tmp_path, *RUN, f"name=run{number}", "resume_from=auto")
        assert run_to_end(words, world, fault) == 0
        run = RunFolder(tmp_path / f"run{number}")
        for checkpoint in run.checkpoints():
            content = checkpoint.load()
            assert_finite({name: content[name] for name in ("state_dict", "ema", "optimizer_states")})
            assert content["ema"]["num_updates"] == checkpoint.step - (checkpoint.step > step), fault
        assert [row["step"] for row in run.read_metrics()] == list(range(1, STEPS + 1))

        (bad,) = map(json.loads, (run.path / "bad_steps.jsonl").read_text().splitlines())
        assert (bad["step"], bad["taken"], bad["positions"]) == (step + 1, False, [4 * step, 4 * step + 4])
        assert bad["reason"] == {"grad": "gradient", "spike": "spike"}.get(kind, "loss")
        assert bad["ranks"] == ([] if kind in ("grad", "spike") else [int(rank[1:])] if rank else list(range(world)))
        assert len(bad["keys"]) == 4

        again = went_back_to(run, 2 * draws.randrange(1, step // 2 + 1), tmp_path / f"again{number}")
        words = train_words(tmp_path, *RUN, f"name=again{number}", "resume_from=auto")
        assert run_to_end(words, world, fault) == 0
        assert differing_rows(again, run) == 0
        assert state_hashes(again) == state_hashes(run)
        assert (again.path / "bad_steps.jsonl").read_text() == (run.path / "bad_steps.jsonl").read_text()
    print(f"{INJECTIONS} injections, {INJECTIONS} steps not taken, 0 rows and 0 bits differ after a resume")


@pytest.mark.parametrize("world", [1, 2] if LONG else [2])
def test_too_many_in_a_row_and_the_run_goes_back_and_skips_what_led_there(
    server, train_words, run_to_end, tmp_path, world
):
    fault = "nan@5,nan@6,nan@7"
    assert run_to_end(train_words(tmp_path, *RUN, "name=run", "resume_from=auto"), world, fault) == 0
    run = RunFolder(tmp_path / "run")
    assert run.state()["rewinds"] == [{"from": 8, "to": 4, "skipped": [4, 8]}]
    content = run.newest_intact_checkpoint().load()
    assert content["skipped"] == [[4, 8]] and content["ema"]["num_updates"] == STEPS
    assert [row["step"] for row in rows(run)] == list(range(1, STEPS + 1))

    again = went_back_to(run, 6, tmp_path / "again")
    assert run_to_end(train_words(tmp_path, *RUN, "name=again", "resume_from=auto"), world, fault) == 0
    assert differing_rows(again, run) == 0 and state_hashes(again) == state_hashes(run)

    whole = RunFolder(tmp_path / "whole")  # a run that has never read anything else
    assert run_to_end(train_words(tmp_path, *RUN, "name=whole", "max_steps=4"), world, "") == 0
    whole.set_state(rewinds=run.state()["rewinds"])
    assert run_to_end(train_words(tmp_path, *RUN, "name=whole", "resume_from=auto"), world, "") == 0
    assert differing_rows(whole, run) == 0 and state_hashes(whole) == state_hashes(run)


def test_killed_after_a_rewind_it_goes_on_past_what_it_had_skipped(server, train_words, tmp_path):
    faults = {"SDS_INJECT": "nan@5,nan@6,nan@7"}
    words = train_words(tmp_path, *RUN, "resume_from=auto")
    reference = server.attempt([*words, "name=whole"], env=faults)
    times = Random(3)
    attempt = server.attempt(words, env=faults, kill_after=times.uniform(0.3, 1) * reference.seconds)
    while attempt.killed:
        attempt = server.attempt(words, env=faults, kill_after=times.uniform(0.5, 1.5) * reference.seconds)
    whole, run = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "tiny")
    assert differing_rows(run, whole) == 0 and state_hashes(run) == state_hashes(whole)


def test_a_run_that_keeps_leaving_the_finite_numbers_ends_with_exit_code_3(server, train_words, tmp_path):
    everywhere = ",".join(f"nan@{step}" for step in range(5, 40))
    attempt = server.attempt(train_words(tmp_path, *RUN), env={"SDS_INJECT": everywhere})
    assert attempt.rc == 3, attempt.output
    assert "diverged: steps 3 to 5 had no finite loss or gradient, after 2 rewinds" in attempt.output
    run = RunFolder(tmp_path / "tiny")
    assert run.state()["status"] == "failed"
    assert [rewind["to"] for rewind in run.state()["rewinds"]] == [4, 2]  # the second one goes further back
    assert run.newest_intact_checkpoint().step == 2


def test_without_a_checkpoint_from_before_there_is_no_way_back(server, train_words, tmp_path):
    attempt = server.attempt(train_words(tmp_path, *RUN), env={"SDS_INJECT": "nan@0,nan@1,nan@2"})
    assert attempt.rc == 3 and "there is no checkpoint from before" in attempt.output, attempt.output

"""A curriculum that is killed anywhere, in a hand-over too, ends as the one that never was: every phase, bit for bit."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import NamedTuple

import pytest
from harness import LONG, ForkServer, assert_same_run, wait_until
from tiny import TINY_PHASES

from sdscratch.run_folder import RunFolder

PHASES = (
    "p1_laion_broad",
    "p2_laion_refined",
    "p3_synthetic",
    "p4_faces",
    "p5_bodies",
    "p6_consolidation",
    "p7_final",
)
CHAIN = PHASES if LONG else ("p1_laion_broad", "p3_synthetic")
KILLS = 70 if LONG else 6
MOMENTS = [f"{moment}/{{}}:{point}" for moment in ("begin", "finish") for point in ("tmp", "fsync", "rename")]
"""Where a manifest can be cut short: before the phase that takes over, and behind the one that is done."""

HANDOVER = ("overrides.p3_synthetic=[init.weights=raw,init.ema=keep,init.optimizer=keep]",)
"""So that a chain hands over in both ways."""


class Chain(NamedTuple):
    """Where a curriculum's runs and manifest are, and how long it took."""

    root: Path
    name: str
    seconds: float = 0.0

    def run(self, phase: str) -> RunFolder:
        return RunFolder(self.root / self.name / phase)

    @property
    def folder(self) -> Path:
        return self.root / "curricula" / self.name

    def manifest(self) -> list[dict]:
        """Its entries, with paths as they would be anywhere, and checkpoints by what is in them (which paths are, too)."""
        text = (self.folder / "manifest.json").read_text().replace(f"{self.root}/{self.name}/", "")
        phases = json.loads(text)["phases"]
        for before, phase in pairwise(phases):
            if phase["carried"] is None:
                continue
            checkpoint = self.run(before["name"]).newest_intact_checkpoint()
            assert phase["carried"].pop("sha256") == checkpoint.sha256
        return phases


@pytest.fixture(scope="module")
def words(tiny_data: Path) -> Callable[..., list[str]]:
    """The command line of a tiny curriculum."""

    def words(chain: Chain, *more: str) -> list[str]:
        places = (f"paths.runs={chain.root}", f"paths.data={tiny_data}", f"paths.curricula={chain.root}/curricula")
        train = f"train=[{','.join((*TINY_PHASES, 'callbacks.validation=null', *more))}]"
        return ["curriculum", f"name={chain.name}", f"phases=[{','.join(CHAIN)}]", train, *places, *HANDOVER]

    return words


@pytest.fixture(scope="module")
def reference(server: ForkServer, words, tmp_path_factory) -> Chain:
    """Nothing happens to it."""
    chain = Chain(tmp_path_factory.mktemp("reference"), "chain")
    attempt = server.attempt(words(chain))
    assert attempt.rc == 0, attempt.output
    return chain._replace(seconds=attempt.seconds)


def assert_same_chain(chain: Chain, reference: Chain) -> None:
    for phase in CHAIN:
        assert_same_run(chain.run(phase), reference.run(phase))
    assert chain.manifest() == reference.manifest()
    assert {path.name for path in chain.folder.iterdir()} == {"manifest.json", ".lock"}


def test_killed_at_random_times_no_phase_and_no_bit_differs(server, words, reference, tmp_path):
    times, kills, number, seconds = Random(0), 0, 0, reference.seconds
    while kills < KILLS:
        number, before = number + 1, kills
        chain = Chain(tmp_path, f"chain{number}")
        while True:
            longest = times.uniform(0.2, 0.6) * seconds if kills < KILLS else None
            attempt = server.attempt(words(chain), kill_after=longest)
            if not attempt.killed:
                break
            kills += 1
        seconds /= 1 if kills > before else 2  # the machine was busier when the reference ran
        assert attempt.rc == 0, attempt.output
        assert_same_chain(chain, reference)


def test_killed_at_every_point_of_a_hand_over(server, words, reference, tmp_path):
    chain = Chain(tmp_path, "chain")
    for phase in CHAIN if LONG else CHAIN[-1:]:
        for moment in MOMENTS:
            point = moment.format(phase)
            attempt = server.attempt(words(chain), env={"SDS_CRASH_AT": point})
            assert attempt.rc == 9, f"{point}: {attempt.output}"
    attempt = server.attempt(words(chain))
    assert attempt.rc == 0, attempt.output
    assert_same_chain(chain, reference)


def test_a_final_checkpoint_that_is_damaged_before_it_is_handed_over_is_made_again(server, words, reference, tmp_path):
    chain = Chain(tmp_path, "chain")
    assert server.attempt(words(chain), env={"SDS_CRASH_AT": f"begin/{CHAIN[1]}:tmp"}).rc == 9
    final = chain.run(CHAIN[0]).checkpoints()[-1]
    with final.path.open("r+b") as file:
        file.seek(final.size // 2)
        file.write(b"damaged")
    attempt = server.attempt(words(chain))
    assert attempt.rc == 0, attempt.output
    assert f"{chain.run(CHAIN[0]).path} has no valid checkpoint of its last step any more" in attempt.output
    assert_same_chain(chain, reference)


def test_killed_while_changed_phases_begin_again_none_is_set_aside_twice(server, words, reference, tmp_path):
    chain = Chain(tmp_path, "chain")
    assert server.attempt([*words(chain), f"overrides.{CHAIN[0]}=[optimizer.lr=0.0]"]).rc == 0
    again = [*words(chain), "on_change=rerun"]
    for point in ("stale:tmp", "stale:rename", *(moment.format(CHAIN[0]) for moment in MOMENTS[1:3])):
        attempt = server.attempt(again, env={"SDS_CRASH_AT": point})
        assert attempt.rc == 9, f"{point}: {attempt.output}"
    attempt = server.attempt(again)
    assert attempt.rc == 0, attempt.output
    assert_same_chain(chain, reference)
    aside = sorted(path.name for path in (tmp_path / "chain").iterdir())
    assert aside == sorted([*CHAIN, *(f"{phase}.stale1" for phase in CHAIN)])


def test_a_signal_stops_the_phase_with_a_checkpoint_and_the_chain_with_it(server, words, reference, tmp_path):
    chain = Chain(tmp_path, "chain")
    running = server.start(words(chain))
    wait_until(lambda: (chain.run(CHAIN[1]).path / "recipe.yaml").exists())
    running.kill(signal.SIGTERM)
    attempt = running.wait()
    assert attempt.rc == 143, attempt.output
    said = attempt.output.splitlines()[-1]
    assert said.startswith(f"sdscratch: {chain.run(CHAIN[1]).path} was stopped by SIGTERM"), attempt.output
    assert said.endswith("the same `sdscratch curriculum` goes on")
    assert chain.run(CHAIN[1]).newest_intact_checkpoint() is not None
    assert chain.manifest()[1]["status"] == "running"
    assert server.attempt(words(chain)).rc == 0
    assert_same_chain(chain, reference)


@pytest.mark.skipif(not LONG, reason="each phase starts two processes, which takes a while")
def test_a_chain_on_two_ranks_is_that_of_one(words, reference, tmp_path):
    chain = Chain(tmp_path, "chain")
    line = words(chain, "trainer=ddp", "trainer.devices=2", "trainer.accelerator=cpu")
    command = [sys.executable, "-m", "sdscratch", *line, f"phases=[{','.join(CHAIN[:3])}]"]
    subprocess.run(command, check=True, timeout=500)
    assert [entry["status"] for entry in chain.manifest()] == ["done"] * 3
    for phase in CHAIN[:3]:
        losses, expected = ([row["train/loss"] for row in c.run(phase).read_metrics()] for c in (chain, reference))
        assert losses == pytest.approx(expected, rel=1e-4)

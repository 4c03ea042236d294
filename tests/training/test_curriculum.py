"""`sdscratch curriculum`: phases that go on from one another, each at the rate of its own, and what is said of them."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import sys
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from stages import watched
from tiny import TINY_PHASES

from sdscratch.cli import main
from sdscratch.commands.curriculum_report import _held_out_losses
from sdscratch.data.shapes import EDITION, samples
from sdscratch.data.shards import write_shards
from sdscratch.errors import RunFolderError
from sdscratch.run_folder import RunFolder
from sdscratch.training.curriculum import set_aside

PHASES = {  # tiny steps and warm-up beside the shipped peaks
    "p1_laion_broad": (7, 3, 1e-4),
    "p2_laion_refined": (4, 1, 1e-5),
    "p3_synthetic": (5, 2, 1e-5),
    "p4_faces": (3, 2, 2e-6),
    "p5_bodies": (4, 3, 1.5e-6),
    "p6_consolidation": (5, 1, 1e-6),
    "p7_final": (6, 2, 1e-6),
}
LENGTHS = [
    f"overrides.{name}=[max_steps={steps},lr_schedule.warmup_steps={warmup}]"
    for name, (steps, warmup, _) in PHASES.items()
]


@pytest.fixture(scope="module")
def words(tiny_data: Path):
    """`words("p1_laion_broad", ..., train="a=b,c=d", more=[...])`: the command line of a tiny curriculum, here."""

    def words(*phases: str, train: str = "", more: Any = ()) -> list[str]:
        tiny = ",".join((*TINY_PHASES, "callbacks.validation.every=100", *filter(None, [train])))
        return ["name=mine", f"phases=[{','.join(phases)}]", f"train=[{tiny}]", f"paths.data={tiny_data}", *more]

    return words


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """A folder of this test's own, from which relative paths start."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def manifest(root: Path = Path()) -> dict[str, dict[str, Any]]:
    entries = json.loads((root / "curricula/mine/manifest.json").read_text())["phases"]
    return {entry["name"]: entry for entry in entries}


def closed_form(steps: int, warmup: int, peak: float) -> list[float]:
    """Linear up to the peak, then half a cosine down to a tenth of it at the last step."""
    up = [peak * n / warmup for n in range(1, min(warmup, steps) + 1)]
    down = [math.cos(math.pi * (n - warmup) / (steps - warmup)) for n in range(warmup + 1, steps + 1)]
    return up + [peak * (0.1 + 0.9 * (1 + cosine) / 2) for cosine in down]


@pytest.fixture(scope="module")
def seven(tmp_path_factory, words):
    """A whole curriculum, and what its optimizers really did: positions, learning rates."""
    root = tmp_path_factory.mktemp("seven")
    with contextlib.chdir(root), watched() as (positions, rates):
        assert main(["curriculum", *words(*PHASES, more=LENGTHS)]) == 0
    return root, positions, rates


def test_every_step_of_every_phase_is_taken_at_the_rate_of_that_phase(seven):
    _, _, rates = seven
    expected = [rate for steps, warmup, peak in PHASES.values() for rate in closed_form(steps, warmup, peak)]
    assert len(rates) == sum(steps for steps, _, _ in PHASES.values())
    assert rates == pytest.approx(expected, rel=1e-12)


def test_the_report_measures_every_phase_on_the_held_out_samples_of_every_phase(seven, monkeypatch, capsys):
    root, _, _ = seven
    monkeypatch.chdir(root)
    assert main(["curriculum", "report", "name=mine"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "curricula/mine/report.html"
    page = Path("curricula/mine/report.html").read_text()
    assert all(
        f'src="report/{name}.png"' in page and Path(f"curricula/mine/report/{name}.png").exists() for name in PHASES
    )
    runs = {name: RunFolder(f"runs/mine/{name}") for name in ("p1_laion_broad", "p7_final")}
    losses = _held_out_losses(runs)
    own = {name: run.read_metrics()[-1]["val/loss"] for name, run in runs.items()}
    assert {name: losses[name][name] for name in runs} == pytest.approx(own, rel=1e-5)
    assert losses["p1_laion_broad"]["p7_final"] != losses["p7_final"]["p7_final"]


def test_each_phase_ends_at_a_tenth_of_its_own_peak_and_the_next_begins_below_it(seven):
    _, _, rates = seven
    ends = 0
    for steps, warmup, peak in PHASES.values():
        of_phase = rates[ends : ends + steps]
        assert of_phase[0] == pytest.approx(peak / warmup) and max(of_phase) == pytest.approx(peak)
        assert of_phase[-1] == pytest.approx(peak / 10)
        ends += steps


def test_the_manifest_says_what_each_phase_took_over_and_samples_count_on(seven):
    root, _, _ = seven
    seen, before = 0, None
    for name, entry in manifest(root).items():
        steps = PHASES[name][0]
        seen += 4 * steps
        assert (entry["status"], entry["samples_seen"]) == ("done", seen)
        assert entry["run"] == f"runs/mine/{name}"
        run = RunFolder(root / entry["run"])
        final = run.checkpoints()[-1]
        assert (final.step, final.samples_seen) == (steps, seen)
        assert entry["data"] == {"samples": 64, "fingerprint": final.load()["settings"]["dataset.fingerprint"]}
        assert entry["metrics"]["best_step"] == steps
        assert entry["metrics"]["val/loss"] == entry["metrics"]["best_val_loss"] == final.val_loss
        if before is None:
            assert entry["carried"] is None
        else:
            assert entry["carried"] == {
                "from": str(before.path.relative_to(root)),
                "step": before.step,
                "samples_seen": before.samples_seen,
                "sha256": before.sha256,
                "weights": "ema",
                "optimizer": "reset",
                "ema": "reset",
            }
            assert run.lineage()["init_from"] == entry["carried"]
        before = final
    assert list(manifest(root)) == list(PHASES)


def test_no_two_phases_draw_the_same(seven):
    """Each counts positions from 0, under a seed of its own."""
    root, positions, _ = seven
    first_of_phase = [0]
    for steps, _, _ in PHASES.values():
        first_of_phase.append(first_of_phase[-1] + steps)
    assert all(positions[first] == [0, 1, 2, 3] for first in first_of_phase[:-1])
    runs = [RunFolder(root / entry["run"]) for entry in manifest(root).values()]
    seeds = [run.checkpoints()[-1].load(mapped=True)["settings"]["seed"] for run in runs]
    assert len(set(seeds)) == len(seeds)


# What is handed over


def weights(run: RunFolder, kind: str) -> dict[str, torch.Tensor]:
    content = run.checkpoints()[-1].load()
    if kind == "ema":
        return content["ema"]["weights"]
    return {name.removeprefix("network."): tensor for name, tensor in content["state_dict"].items()}


def test_a_hand_over_takes_along_what_it_says(words):
    keep = "overrides.p4_faces=[init.weights=raw,init.ema=keep,init.optimizer=keep,optimizer.lr=0.0,max_steps=1]"
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=[keep])]) == 0
    first, second = (RunFolder(entry["run"]) for entry in manifest().values())
    raw, averaged = weights(first, "raw"), weights(first, "ema")
    assert all(torch.equal(tensor, raw[name]) for name, tensor in weights(second, "raw").items())  # at a rate of 0
    content = second.checkpoints()[-1].load()
    assert content["ema"]["num_updates"] == 4 + 1
    assert any(not torch.equal(tensor, averaged[name]) for name, tensor in content["ema"]["weights"].items())
    assert content["optimizer_states"][0]["state"][0]["step"] == 4 + 1
    carried = manifest()["p4_faces"]["carried"]
    assert (carried["weights"], carried["ema"], carried["optimizer"]) == ("raw", "keep", "keep")


def test_the_autoencoder_and_clip_of_the_chain_serve_its_later_phases(words):
    phases = ("s1_autoencoder", "s2_clip", "p1_laion_broad")
    small = [
        "trainer=cpu", "logger=none", "threads=1", "dataset=shapes", "dataset.count=64", "dataset.val_count=16",
        "dataset.resolution=32", "global_batch_size=4", "max_steps=2", "lr_schedule.warmup_steps=1",
        "callbacks.previews=null", "callbacks.plots=null",
    ]  # fmt: skip
    more = [
        "overrides.s1_autoencoder=[vae=kl_tiny]",
        "overrides.s2_clip=[text_encoder=clip_tiny]",
        "overrides.p1_laion_broad=[model=unet_tiny]",
    ]
    line = [word for word in words(*phases) if not word.startswith("train=")]
    assert main(["curriculum", *line, f"train=[{','.join(small)}]", *more]) == 0
    carried = {name: entry["carried"] for name, entry in manifest().items()}
    models = {part: f"runs/mine/{name}/model" for part, name in
              (("vae", "s1_autoencoder"), ("text_encoder", "s2_clip"))}  # fmt: skip
    assert carried == {"s1_autoencoder": None, "s2_clip": None, "p1_laion_broad": models}
    for part, folder in models.items():
        trained, used = (
            (root / part / name).read_bytes()
            for root in (Path(folder), Path("runs/mine/p1_laion_broad/model"))
            for name in ["diffusion_pytorch_model.safetensors" if part == "vae" else "model.safetensors"]
        )
        assert trained == used


# Finished phases


@pytest.fixture(scope="module")
def trained_two(tmp_path_factory, words) -> Path:
    root = tmp_path_factory.mktemp("two")
    with contextlib.chdir(root):
        assert main(["curriculum", *words("p1_laion_broad", "p4_faces")]) == 0
    return root


@pytest.fixture
def two(trained_two, here) -> Path:
    """Two finished phases, here."""
    return Path(shutil.copytree(trained_two, here, dirs_exist_ok=True))


def test_finished_phases_are_skipped(two, words, capsys):
    before = (two / "curricula/mine/manifest.json").read_bytes()
    with watched() as (_, rates):
        assert main(["curriculum", *words("p1_laion_broad", "p4_faces")]) == 0
    assert rates == [] and capsys.readouterr().out.count("is done") == 2
    assert (two / "curricula/mine/manifest.json").read_bytes() == before


def test_a_finished_phase_that_is_changed_is_refused_with_the_difference(two, words, capsys):
    more = ["overrides.p1_laion_broad=[optimizer.lr=1.0e-3]"]
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 2
    said = capsys.readouterr().err
    assert "p1_laion_broad: optimizer.lr: 0.0001 -> 0.001" in said and "on_change=rerun" in said
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=["handover.weights=raw"])]) == 2
    assert "p4_faces: handover.weights: ema -> raw" in capsys.readouterr().err
    assert main(["curriculum", *words("p4_faces")]) == 2
    assert "p4_faces: handover.from: runs/mine/p1_laion_broad -> nothing" in capsys.readouterr().err


def test_what_was_not_learnt_from_may_change(two, words):
    train = "callbacks.checkpoints.every=1,dataset.num_workers=2"
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", train=train)]) == 0


def test_changed_phases_are_trained_again_on_request_and_those_that_build_on_them(two, words, capsys):
    old = {name: RunFolder(entry["run"]).checkpoints()[-1].sha256 for name, entry in manifest().items()}
    more = ["overrides.p1_laion_broad=[optimizer.lr=1.0e-3]", "on_change=rerun"]
    with watched() as (_, rates):
        assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 0
    assert "stale, to be trained again: p1_laion_broad, p4_faces" in capsys.readouterr().out
    assert len(rates) == 8 and rates[0] == 1e-3
    for name, entry in manifest().items():
        run = RunFolder(entry["run"])
        assert entry["status"] == "done" and run.checkpoints()[-1].sha256 != old[name]
        assert RunFolder(f"{run.path}.stale1").checkpoints()[-1].sha256 == old[name]
    with watched() as (_, rates):
        assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 0
    assert rates == []  # asked for again, it is as configured


def test_a_stale_phase_that_another_process_trains_is_not_set_aside_under_its_hands(tmp_path):
    run = RunFolder(tmp_path / "p4_faces")
    run.set_state(status="running")
    code = "import sys; from sdscratch.run_folder import RunFolder; run = RunFolder(sys.argv[1])"
    code += "; run.lock(); print(flush=True); input()"
    with Popen([sys.executable, "-c", code, str(run.path)], stdin=PIPE, stdout=PIPE) as other:
        other.stdout.readline()
        with pytest.raises(RunFolderError, match=f"is in use by process {other.pid}"):
            set_aside(run)
        other.communicate(b"\n")
    assert set_aside(run) == tmp_path / "p4_faces.stale1" and not run.path.exists()


def test_a_changed_last_phase_leaves_those_before_it_alone(two, words):
    more = ["overrides.p4_faces=[objective.min_snr_gamma=1.0]", "on_change=rerun"]
    with watched() as (_, rates):
        assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 0
    assert len(rates) == 4
    assert not (two / "runs/mine/p1_laion_broad.stale1").exists()


def test_what_builds_on_a_changed_phase_is_stale_also_where_it_is_not_asked_for(two, words, capsys):
    old = RunFolder("runs/mine/p4_faces").checkpoints()[-1].sha256
    more = ["overrides.p1_laion_broad=[optimizer.lr=1.0e-3]"]
    assert main(["curriculum", *words("p1_laion_broad", more=[*more, "on_change=rerun"])]) == 0
    assert "stale, to be trained again: p1_laion_broad, p4_faces" in capsys.readouterr().out
    assert [entry["status"] for entry in manifest().values()] == ["done", "stale"]
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 0
    assert [entry["status"] for entry in manifest().values()] == ["done", "done"]
    assert RunFolder("runs/mine/p4_faces").checkpoints()[-1].sha256 != old


def test_other_data_behind_the_same_settings_are_noticed(two, words, capsys):
    about = {"by": "shapes", "scenes": EDITION, "resolution": 32, "seed": 0}
    for split, count in (("train", 64), ("val", 16)):  # drawn with another seed than it says
        made_by = about | {"split": split, "count": count}
        write_shards(two / "scenes" / split, samples(split, count, 32, seed=1), made_by)
    more = [f"overrides.p4_faces=[dataset.path={two}/scenes]"]
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 2
    assert (
        f"p4_faces: dataset.fingerprint: {manifest()['p4_faces']['data']['fingerprint']} -> " in capsys.readouterr().err
    )
    shutil.rmtree(two / "scenes")
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=more)]) == 0  # it does without
    assert not (two / "scenes").exists()


def test_what_a_phase_takes_over_is_decided_anew_as_long_as_it_has_learnt_nothing(two, words):
    wrong = ["overrides.p5_bodies=[init_from=runs/none]"]
    phases = ("p1_laion_broad", "p4_faces", "p5_bodies")
    assert main(["curriculum", *words(*phases, more=wrong)]) == 2
    assert manifest()["p5_bodies"]["carried"]["from"] == "runs/none"
    assert main(["curriculum", *words(*phases, more=["overrides.p5_bodies=[init.weights=raw]"])]) == 0
    carried = manifest()["p5_bodies"]["carried"]
    assert (carried["from"], carried["weights"]) == ("runs/mine/p4_faces/checkpoints/step_00000004.ckpt", "raw")
    assert RunFolder("runs/mine/p5_bodies").lineage()["init_from"] == carried


def test_another_hand_over_is_refused_also_to_a_phase_that_is_still_learning(two, words, capsys):
    entries = manifest()
    entries["p4_faces"]["status"] = "running"
    Path("curricula/mine/manifest.json").write_text(json.dumps({"phases": list(entries.values())}))
    assert main(["curriculum", *words("p1_laion_broad", "p4_faces", more=["handover.weights=raw"])]) == 2
    assert "p4_faces: handover.weights: ema -> raw" in capsys.readouterr().err


def test_weights_from_outside_are_in_the_manifest_with_their_checksum(two, words):
    outside = "runs/mine/p1_laion_broad"
    line = words("p4_faces", more=[f"overrides.p4_faces=[init_from={outside}]", "name=other"])
    assert main(["curriculum", *line]) == 0
    (entry,) = json.loads(Path("curricula/other/manifest.json").read_text())["phases"]
    final = RunFolder(outside).checkpoints()[-1]
    assert (entry["carried"]["from"], entry["carried"]["sha256"]) == (outside, final.sha256)
    assert main(["curriculum", *line]) == 0


def test_a_run_that_is_gone_is_said(two, capsys):
    shutil.rmtree("runs/mine/p4_faces")
    assert main(["curriculum", "status", "name=mine"]) == 0
    assert "done (its run is gone)" in capsys.readouterr().out


def test_a_phase_whose_process_was_killed_is_not_said_to_run(two, capsys):
    entries = manifest()
    entries["p4_faces"]["status"] = "running"
    Path("curricula/mine/manifest.json").write_text(json.dumps({"phases": list(entries.values())}))
    run = RunFolder("runs/mine/p4_faces")
    run.set_state(status="running")
    assert main(["curriculum", "status", "name=mine"]) == 0
    assert "running (stopped)" in capsys.readouterr().out
    run.lock()
    assert main(["curriculum", "status", "name=mine"]) == 0
    assert "running (" not in capsys.readouterr().out
    run.unlock()


# Refused


@pytest.mark.parametrize(
    ("phases", "more", "said"),
    [
        (["p1_laion_broad", "p1_laion_broad"], [], "p1_laion_broad is there twice"),
        (["[p1_laion_broad]"], [], "expected a list of phases"),
        (["p1_laion_broad"], ["overrides.p1_laion_broad=[callbacks.checkpoints=null]"], "checkpoints: leave it on"),
        (["p1_laion_broad"], ["overrides.p1_laion=[seed=1]"], "did you mean 'p1_laion_broad'"),
        (["p1_laion"], [], "p1_laion"),
        (["p1_laion_broad"], ["overrides.p1_laion_broad=[name=x]"], "name is set by the curriculum itself"),
        (["p1_laion_broad"], ["overrides.p1_laion_broad=[optimizer.lrr=1]"], "did you mean 'optimizer.lr'"),
        (["p1_laion_broad", "p4_faces"], ["handover.weights=best"], "handover.weights='best' is unknown"),
        (["p1_laion_broad"], ["overrides.p1_laion_broad=[max_steps=0]"], "expected a whole number"),
        (
            ["p1_laion_broad", "p4_faces"],
            ["overrides.p4_faces=[trainer.devices=3]"],
            "p4_faces: global_batch_size=4 is not",
        ),
        (["p1_laion_broad"], ["name=../x"], "is no folder below curricula"),
        (["p1_laion_broad"], ["on_change=maybe"], "expected refuse or rerun"),
        (["p1_laion_broad"], ["paths.curricula=/proc/none"], "cannot write into"),
    ],
)
def test_mistakes_are_one_message_and_nothing_begins(words, here, capsys, phases, more, said):
    assert main(["curriculum", *words(*phases, more=more)]) in (2, 4)
    assert said in capsys.readouterr().err
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("word", ["on_change=maybe", "handover.weights=best"])
def test_the_plan_refuses_what_the_curriculum_would(here, capsys, word):
    assert main(["curriculum", "plan", "name=mine", "phases=[p1_laion_broad]", word]) == 2
    assert "is unknown; expected" in capsys.readouterr().err


def test_a_run_that_was_there_before_is_not_taken_for_a_phase(two, words, capsys):
    (two / "curricula/mine/manifest.json").unlink()
    assert main(["curriculum", *words("p1_laion_broad")]) == 2
    assert "holds a run that" in capsys.readouterr().err


def test_a_damaged_manifest_is_named(two, words, capsys):
    file = two / "curricula/mine/manifest.json"
    whole = file.read_text()
    damaged = [whole.replace('"done"', '"over"')]
    for name, wrong in {
        "run": 5,
        "carried": [],
        "samples_seen": "x",
        "data": "x",
        "metrics": [1],
        "name": None,
    }.items():
        phases = json.loads(whole)["phases"]
        damaged.append(json.dumps({"phases": [phases[0], {**phases[1], name: wrong}]}))
    for wrong in ({"from": "runs/x"}, {**phases[1]["carried"], "from": 5}, {"vae": 5}):
        damaged.append(json.dumps({"phases": [phases[0], {**phases[1], "carried": wrong}]}))
    for text in ("{", "{}", "[" * 100_000, '{"phases": {}}', '{"phases": [{"name": "p1"}]}', *damaged):
        file.write_text(text)
        assert main(["curriculum", *words("p1_laion_broad")]) == 2
        assert "manifest.json is damaged" in capsys.readouterr().err
    file.unlink()
    file.mkdir()
    assert main(["curriculum", "status", "name=mine"]) == 2
    assert "cannot read" in capsys.readouterr().err


# Plan and status


def test_the_plan_is_made_before_anything_is_there(here, capsys):
    assert main(["curriculum", "plan", "name=mine", "phases=[p1_laion_broad,p8_flow]"]) == 0
    said = capsys.readouterr().out
    (p1,) = [line.split("│") for line in said.splitlines() if "p1_laion_broad" in line]
    cells = [cell.strip() for cell in p1[1:-1]]
    assert cells == [
        "p1_laion_broad", "137,022", "13,154,112", "10.00 described", "0.0001 to 1e-05, warm-up 500", "laion_broad",
        "missing", "unknown", "55.0 GB",
    ]  # fmt: skip
    assert "unknown until a rate is measured" in said
    assert list(here.iterdir()) == []


def test_the_plan_names_what_is_trained_on_not_what_is_only_measured(here, capsys):
    less = "overrides.p6_consolidation=[dataset.sources.faces.share=0]"
    assert main(["curriculum", "plan", "name=mine", "phases=[p6_consolidation]", less]) == 0
    (p6,) = [line for line in capsys.readouterr().out.splitlines() if "p6_consolidation" in line]
    assert "bodies" in p6 and "faces" not in p6


def test_gpu_hours_are_those_of_a_measured_rate(two, words, capsys):
    assert main(["curriculum", "plan", *words("p1_laion_broad", "p4_faces", "p5_bodies")]) == 0
    said = capsys.readouterr().out
    assert "unknown" not in said and "missing" not in said and "0.25" in said
    assert main(["curriculum", "plan", "name=new", "phases=[p1_laion_broad]", "samples_per_second=120"]) == 0
    assert f"{13_154_112 / 120 / 3600 * 2:.1f}" in capsys.readouterr().out


def test_status_says_where_it_stands(two, capsys):
    assert main(["curriculum", "status", "name=mine"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "p4_faces" in line]
    assert len(lines) == 1
    assert all(text in lines[0] for text in ("done", "4 of 4", "32", "p1_laion_broad", "runs/mine/p4_faces"))
    assert main(["curriculum", "status", "name=other"]) == 2
    assert "holds no curriculum" in capsys.readouterr().err


# The command line


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("train=[a=b,c.d=1.0e-5]", {"train": ["a=b", "c.d=1.0e-5"]}),
        ("train=[a=[1,[2,3]],b={c: [4,5], d: 'x,y'}]", {"train": ["a=[1,[2,3]]", "b={c: [4,5], d: 'x,y'}"]}),
        ("train=['a=b', \"c=d\"]", {"train": ["a=b", "c=d"]}),
        ("overrides.p4_faces=[lr=1,m=2]", {"overrides": {"p4_faces": ["lr=1", "m=2"]}}),
        ("overrides={p4_faces: ['lr=1']}", {"overrides": {"p4_faces": ["lr=1"]}}),
    ],
)
def test_words_inside_a_word_need_no_quotes(capsys, word, found):
    assert main(["curriculum", "--cfg", "job", "name=x", word]) == 0
    cfg = OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))
    assert {key: cfg[key] for key in found} == found


def test_phases_of_ones_own_are_found_in_another_folder(here, words):
    own = here / "mine/phase/warm.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nname: warm\noptimizer: {lr: 0.125}\n")
    with watched() as (_, rates):
        assert main(["curriculum", *words("warm", train="max_steps=1"), "--config-dir", "mine"]) == 0
    assert rates == [0.125] and manifest()["warm"]["status"] == "done"

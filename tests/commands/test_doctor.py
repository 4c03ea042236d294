"""`sdscratch doctor` as people call it."""

from __future__ import annotations

import shutil
import time

import pytest

from sdscratch.cli import main
from sdscratch.doctor.loading import weights


@pytest.fixture
def doctor(tmp_path, tiny_data, capsys):
    def call(*words: str) -> tuple[int, dict[str, str], str]:
        code = main(["doctor", f"paths.runs={tmp_path}", f"paths.data={tiny_data}", *words])
        out, err = capsys.readouterr()
        return code, {line[6:].split()[0]: line[:4].strip() for line in out.splitlines() if line[0] != " "}, out + err

    return call


def test_a_machine_that_has_trained_is_found_ready_in_seconds(doctor, tiny_run, tmp_path):
    start = time.perf_counter()
    code, levels, said = doctor("experiment=tiny", "dataset.num_workers=1")
    assert code == 0 and "ready to train tiny: 30 steps of 4 samples" in said
    expected = ("python", "packages", "cpu", "bf16", "attention", "space", "disk", "loader", "gloo", "hub")
    assert [levels[name] for name in expected] == ["ok"] * len(expected), said
    assert "samples/s with num_workers=1" in said
    assert time.perf_counter() - start < 60
    assert not list(tmp_path.iterdir())


def test_what_fails_gives_exit_code_2_and_the_remedy(doctor, tiny_run, tiny_data, tmp_path):
    shutil.copytree(tiny_data / "shapes_32_64" / "train", tmp_path / "train")
    (shard,) = tmp_path.glob("train/*.tar")
    shard.write_bytes(shard.read_bytes()[:-512])
    code, levels, said = doctor("model=unet_tiny", f"dataset.path={tmp_path}/train", "paths.runs=/proc/nowhere")
    assert code == 2
    assert levels["loader"] == levels["disk"] == "fail"
    assert "00000.tar has" in said and "set another paths.runs" in said
    assert "not ready to train: space, disk, loader" in said and "Traceback" not in said


def test_scenes_that_training_will_draw_are_not_missed_and_not_drawn(doctor, tmp_path):
    code, levels, _ = doctor("experiment=tiny", f"paths.data={tmp_path}/nothing")
    assert code == 0 and levels["loader"] == "ok" and not (tmp_path / "nothing").exists()


def test_without_a_whole_run_the_machine_alone_is_called_ready(doctor, tmp_path):
    code, levels, said = doctor("model=unet_tiny", f"paths.data={tmp_path}/nothing")
    assert code == 0 and levels["loader"] == levels["vae"] == "warn"
    assert "this machine is ready, with" in said and "ready to train" not in said
    assert "not set: dataset.path, name, max_steps, global_batch_size" in said


def test_weights_that_a_whole_run_needs_and_are_not_here_are_a_failure(doctor):
    code, levels, said = doctor("experiment=tiny", "vae=sd_vae_ft_mse")
    assert code == 2 and levels["vae"] == "fail" and "not ready to train: vae" in said
    assert "objective" not in levels


def test_an_objective_that_can_hardly_be_sampled_is_warned_of(doctor):
    code, levels, said = doctor(
        "model=unet_tiny", "objective=epsilon", "noise_schedule@objective.noise_schedule=cosine"
    )
    assert code == 0 and levels["objective"] == "warn" and "goes from sigma 20,291 (alphas_cumprod 2.4e-09)" in said


def test_a_mixture_is_tried_where_all_its_sources_are(doctor, tiny_run, tiny_data, tmp_path):
    folder = tiny_data / "shapes_32_64"
    for second, level in ((folder / "val", "ok"), (tmp_path / "nothing", "fail")):
        sources = f"dataset.sources={{a: {{path: {folder}/train, share: 3}}, b: {{path: {second}, share: 1}}}}"
        words = ("experiment=tiny", "dataset=mixture", "~dataset.count", "~dataset.val_count", sources)
        code, levels, said = doctor(*words, "dataset.holdout=0.2")
        assert code == {"ok": 0, "fail": 2}[level] and levels["loader"] == level, said


def test_it_takes_the_words_of_train_and_refuses_others(doctor):
    code, _, said = doctor("max_stepz=3")
    assert code == 2 and "max_steps" in said


def test_weights_are_looked_for_where_training_will(tmp_path, monkeypatch):
    (finding,) = weights("vae", "stabilityai/no-such-vae")
    assert finding.level == "fail" and "hf download stabilityai/no-such-vae" in finding.remedy
    (finding,) = weights("vae", "runs/vae/model", "warn")
    assert finding.level == "warn"
    (finding,) = weights("vae", str(tmp_path))
    assert finding.level == "ok"

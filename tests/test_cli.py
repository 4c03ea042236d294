"""The command line, on commands that stand for the shipped ones: what reaches them, what is said, and the exit code."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from sdscratch import errors
from sdscratch.cli import main
from sdscratch.verbs import VERBS, Verb

TRAIN = """
defaults:
  - _self_
  - paths: default
  - model: small
  - hydra: default
  - experiment: null
name: x
seed: 0
prompt: null
out: null
api_key: hush
"""
HYDRA = Path(__file__).parents[1] / "conf/hydra/default.yaml"


@pytest.fixture
def ran(tmp_path, monkeypatch) -> list:
    """What the commands were called with: `probe` takes a configuration, `again` a run."""
    calls: list = []
    conf = tmp_path / "conf"
    for name, text in {
        "probe.yaml": TRAIN,
        "paths/default.yaml": f"runs: {tmp_path}/runs",
        "model/small.yaml": "{_target_: sdscratch.diffusion.Uniform}",
        "model/normal.yaml": "{_target_: sdscratch.diffusion.LogitNormal, mean: 0.0}",
        "hydra/default.yaml": HYDRA.read_text(),
    }.items():
        (conf / name).parent.mkdir(parents=True, exist_ok=True)
        (conf / name).write_text(text)
    for name, run in {"probe": calls.append, "again": lambda *arguments: calls.append(arguments)}.items():
        module = ModuleType(f"sdscratch.commands.{name}")
        module.run = run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr("sdscratch.config.composition.config_dir", lambda: conf)
    monkeypatch.setitem(VERBS, "probe", Verb("probe", "probe", "Look around.", ("sdscratch probe seed=1",)))
    monkeypatch.setitem(VERBS, "data probe", Verb("probe", "probe", "Look around.", ("sdscratch data probe",)))
    monkeypatch.setitem(VERBS, "again", Verb("again", None, "Look again.", ("sdscratch again runs/x",)))
    monkeypatch.chdir(tmp_path)
    return calls


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str, exit_code: int = 2) -> str:
    """What stderr says of a command line that is refused."""
    assert main(arguments) == exit_code
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("sdscratch: ")
    assert "Traceback" not in said.err and len(said.err.splitlines()) <= 40
    return said.err


# What reaches a command


@pytest.mark.parametrize("verb", [["probe"], ["data", "probe"]])
def test_a_command_gets_its_configuration_with_the_overrides(ran, verb):
    assert main([*verb, "seed=3", "model=normal"]) == 0
    assert ran[0].seed == 3 and ran[0].model._target_.endswith("LogitNormal") and isinstance(ran[0], DictConfig)


def test_a_command_on_a_run_gets_the_run_and_the_overrides(ran):
    assert main(["again", "runs/x", "max_steps=3"]) == 0
    assert ran == [("runs/x", ["max_steps=3"])]


FREE_TEXT = [
    "a sunset, cinematic (4k)",
    'it\'s "quoted"',
    "a=b, c={d: [e]}",
    "  ünïcode 🌅  ",
    "${oc.env:HOME} \\${x} costs $5",
    "null",
    "3",
    "",
    "two\nlines",
    "C:\\pictures\\",
]


@pytest.mark.parametrize("text", FREE_TEXT)
def test_free_text_arrives_as_one_literal_string(ran, text):
    assert main(["probe", f"prompt={text}", f"out={text}"]) == 0
    assert ran[0].prompt == ran[0].out == text


def test_free_text_under_an_unknown_key_is_refused_by_its_key(ran, capsys):
    assert "negative_prompt: nothing reads this key" in refusal(capsys, "probe", "+negative_prompt=a, (b)")


def test_a_config_group_called_model_is_no_free_text(ran):
    assert main(["probe", "-m", "model=small,normal", "prompt=a,b"]) == 0
    assert [cfg.model._target_.rpartition(".")[2] for cfg in ran] == ["Uniform", "LogitNormal"]
    assert [cfg.prompt for cfg in ran] == ["a,b", "a,b"]


def test_a_sweep_runs_every_combination_and_keeps_the_working_directory_clean(ran, tmp_path):
    before = set(tmp_path.iterdir())
    assert main(["probe", "--multirun", "seed=1,2", "model=small,normal", "name=grid"]) == 0
    names = [f"grid/model-{model}_seed-{seed}" for seed in (1, 2) for model in ("small", "normal")]
    assert [(cfg.seed, cfg.name) for cfg in ran] == list(zip((1, 1, 2, 2), names, strict=True))
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"runs"}
    assert [str(path.relative_to(tmp_path)) for path in (tmp_path / "runs").rglob("*.*")] == ["runs/grid/multirun.yaml"]


def test_a_sweep_with_a_wrong_key_runs_nothing(ran, capsys):
    assert "did you mean 'seed'" in refusal(capsys, "probe", "-m", "sed=1,2")
    assert "did you mean 'normal'" in refusal(capsys, "probe", "-m", "model=small,norml")
    assert ran == []


def test_an_error_in_a_sweep_gives_its_exit_code(ran, monkeypatch, capsys):
    def diverge(cfg: DictConfig) -> None:
        raise errors.DivergedError("the loss left the finite numbers")

    monkeypatch.setattr(sys.modules["sdscratch.commands.probe"], "run", diverge)
    assert main(["probe", "-m", "seed=1,2"]) == 3
    said = capsys.readouterr().err
    assert "sdscratch: 2 of 2 jobs failed" in said and said.endswith("seed-2: the loss left the finite numbers\n")


def test_configs_from_another_folder_are_found(ran, tmp_path, capsys):
    folder = tmp_path / "my, own = (folder)"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment/mine.yaml").write_text("# @package _global_\nseed: 7\n")
    (folder / "experiment/typo.yaml").write_text("# @package _global_\nsede: 7\n")
    assert main(["probe", "--config-dir", str(folder), "experiment=mine"]) == 0
    assert ran[0].seed == 7
    assert "sede: nothing reads this key" in refusal(capsys, "probe", "experiment=typo", "--config-dir", str(folder))
    assert "no such folder" in refusal(capsys, "probe", "--config-dir", str(tmp_path / "nowhere"))


def test_a_verb_changes_no_directory_and_writes_nothing(ran, tmp_path):
    before = set(tmp_path.rglob("*"))
    assert main(["probe"]) == 0
    assert Path.cwd() == tmp_path and set(tmp_path.rglob("*")) == before


# Showing instead of running


def test_the_configuration_is_shown_without_secrets_and_not_run(ran, capsys):
    assert main(["probe", "--cfg", "job", "seed=3", "name=n_${seed}"]) == 0
    shown = OmegaConf.create(capsys.readouterr().out)
    assert shown.seed == 3 and OmegaConf.to_container(shown)["name"] == "n_${seed}" and shown.api_key == "***"
    assert main(["probe", "--cfg", "job", "--resolve", "seed=3", "name=n_${seed}"]) == 0
    assert OmegaConf.to_container(OmegaConf.create(capsys.readouterr().out))["name"] == "n_3"
    assert ran == []


def test_the_defaults_list_is_shown(ran, capsys):
    assert main(["probe", "--info", "defaults"]) == 0
    assert capsys.readouterr().out.splitlines() == ["probe: _global_", "paths/default: paths", "model/small: model"]


def test_help_of_a_verb_shows_examples_groups_and_keys(ran, capsys):
    assert main(["probe", "--help"]) == 0
    shown = capsys.readouterr().out
    for line in ("Look around.", "  sdscratch probe seed=1", "  model: normal [small]", "  seed: 0", "??? stands for"):
        assert line in shown
    assert ran == [] and "hush" not in shown


@pytest.mark.parametrize("words", ["", "--help", "-h", "data", "data --help", "again --help", "help", "help data"])
def test_help_needs_nothing(ran, capsys, words):
    assert main(words.split()) == 0 and "usage: sdscratch" in capsys.readouterr().out and ran == []


def test_help_is_a_verb_too_and_says_what_is_to_be_said_of_a_run(capsys):
    for verb, said in (("resume", "max_steps=60"), ("checkpoints", "keep_every=N")):
        assert main(["help", verb]) == 0 and said in capsys.readouterr().out.partition("Examples:")[2]


# Refusals and exit codes


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["prob"], "did you mean 'probe'"),
        (["frobnicate"], "there are: quickstart, train"),
        (["shapes"], "did you mean 'data shapes'"),
        (["data", "shaps"], "did you mean 'data shapes'"),
        (["again"], "sdscratch again runs/x"),
        (["again", "seed=3"], "sdscratch again runs/x"),
        (["probe", "--cgf", "job"], "--cgf"),
        (["probe", "--cfg", "hydra"], "--cfg"),
        (["probe", "sed=1"], "did you mean 'seed'"),
        (["probe", "seed=x"], "seed: expected int"),
        (["probe", "+model.mean=1"], "model.mean: sdscratch.diffusion.Uniform takes no such argument"),
        (["probe", "model=normal", "model.mean=x"], "model.mean"),
        (["probe", "model._target_=os.system"], "'os.system' is not allowed"),
        (["probe", "--experimental-rerun", "x.pickle"], "--experimental-rerun"),
    ],
)
def test_a_wrong_command_line_is_refused_with_advice(ran, capsys, arguments, said):
    assert said in refusal(capsys, *arguments)
    assert ran == []


def test_what_has_to_be_set_is_named_with_a_whole_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = refusal(capsys, "train", "max_steps=3")
    assert "name: required, but not set" in said and "max_steps" not in said
    assert "for example: sdscratch train experiment=tiny name=try1\n" in said


@pytest.mark.parametrize("verb", ["resume", "checkpoints"])
@pytest.mark.parametrize("name", ["try1", "runs/tyr1"])
def test_a_run_that_is_not_there_is_looked_for_among_those_that_are(capsys, tmp_path, monkeypatch, verb, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs/try1").mkdir(parents=True)
    (tmp_path / "runs/try1/state.json").write_text("{}")
    assert f"{name} holds no run" in (said := refusal(capsys, verb, name)) and "did you mean 'runs/try1'?" in said
    assert "did you mean" not in refusal(capsys, verb, "faces")


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (errors.ConfigError("no"), 2),
        (errors.DataError("no"), 2),
        (errors.RunFolderError("no"), 2),
        (errors.DivergedError("no"), 3),
        (errors.CannotWriteError("no"), 4),
        (OSError(errno.ENOSPC, "No space left on device"), 4),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x/model"), 2),
        (OSError(errno.EIO, "Input/output error", "data/00000.tar"), 2),
        (OSError(errno.EMFILE, "Too many open files"), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(ran, monkeypatch, capsys, error, exit_code):
    def fail(cfg: DictConfig) -> None:
        raise error

    monkeypatch.setattr(sys.modules["sdscratch.commands.probe"], "run", fail)
    assert len(refusal(capsys, "probe", exit_code=exit_code).splitlines()) == 1


def test_a_removed_group_that_the_command_needs_is_the_users_to_mend(ran, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["sdscratch.commands.probe"], "run", lambda cfg: cfg.model)
    assert "model" in refusal(capsys, "probe", "~model")


@pytest.mark.parametrize("greedy", [lambda _: bytearray(2**60), lambda _: torch.empty(2**50)], ids=["python", "torch"])
def test_whoever_asks_for_more_than_the_memory_holds_is_told_so_in_one_line(ran, monkeypatch, capsys, greedy):
    monkeypatch.setattr(sys.modules["sdscratch.commands.probe"], "run", greedy)
    said = refusal(capsys, "probe")
    assert len(said.splitlines()) == 1 and "the memory does not suffice" in said and "a smaller size" in said


def test_our_own_bugs_are_raised(ran, monkeypatch):
    monkeypatch.setattr(sys.modules["sdscratch.commands.probe"], "run", lambda cfg: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["probe"])


def test_the_traceback_of_a_refusal_can_be_asked_for(ran, monkeypatch, capsys):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    assert main(["probe", "sed=1"]) == 2
    said = capsys.readouterr().err
    assert "Traceback" in said and "did you mean 'seed'" in said.splitlines()[-1]


# As a process


def process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=120
    )


def test_help_loads_neither_hydra_nor_torch_and_help_of_a_verb_no_torch(tmp_path):
    code = (
        "import sys, time; start = time.process_time()\n"
        "from sdscratch.cli import main\n"
        "main(['--help']); assert not {'torch', 'hydra', 'omegaconf'} & set(sys.modules)\n"
        "assert time.process_time() - start < 1.0\n"
        "main(['train', '--help']); assert not {'torch', 'lightning', 'diffusers'} & set(sys.modules)\n"
    )
    done = process("-c", code, folder=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_module_is_the_command(tmp_path):
    done = process("-m", "sdscratch", "train", "max_step=3", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "sdscratch: there is no key 'max_step'; did you mean 'max_steps'?\n"
    assert not list(tmp_path.iterdir())

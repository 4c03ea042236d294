"""A configuration chooses parts of a run; it cannot run code, by whatever way it comes in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sdscratch.cli import main
from sdscratch.config import build, check_config
from sdscratch.errors import ConfigError
from sdscratch.run_folder import RunFolder

CALLS = {
    "os.system": "command: touch canary",
    "logging.os.system": "command: touch canary",
    "posix.system": "command: touch canary",
    "subprocess.run": "args: [touch, canary]",
    "subprocess.Popen": "args: [touch, canary]",
    "builtins.exec": "_args_: [\"open('canary', 'w')\"]",
    "builtins.eval": "_args_: [\"open('canary', 'w')\"]",
    "builtins.open": "file: canary, mode: w",
    "builtins.__import__": "name: evil",
    "importlib.import_module": "name: evil",
    "runpy.run_path": "path_name: evil.py",
    "pdb.Pdb._getval": "_args_: [\"open('canary', 'w')\"]",
    "timeit.timeit": "stmt: \"open('canary', 'w')\"",
    "code.interact": "banner: x",
    "pathlib.Path.touch": "_args_: [canary]",
    "shutil.copyfile": "src: evil.py, dst: canary",
    "shutil.rmtree": "path: evil",
    "pickle.load": "_args_: [{_target_: builtins.open, file: evil.pkl, mode: rb}]",
    "torch.load": "f: evil.pt, weights_only: false",
    "torch.hub.load": "repo_or_dir: ., model: evil, source: local",
    "torch.utils.cpp_extension.load": "name: evil, sources: [evil.cpp]",
    "torch.serialization.load": "f: evil.pt, weights_only: false",
    "numpy.load": "file: evil.npy, allow_pickle: true",
    "webdataset.WebDataset": "urls: 'pipe:touch canary'",
    "webdataset.gopen.gopen_pipe": "url: 'pipe:touch canary'",
    "wandb.init": "project: evil",
    "lightning.Trainer.os.system": "command: touch canary",
    "lightning.fabric.plugins.io.TorchCheckpointIO.load_checkpoint": "path: evil.pt",
    "lightning.pytorch.core.saving.load_hparams_from_yaml": "config_yaml: evil.yaml",
    "lightning.pytorch.LightningModule.load_from_checkpoint": "checkpoint_path: evil.pt",
    "diffusers.DiffusionPipeline.from_pretrained": "pretrained_model_name_or_path: ., custom_pipeline: evil",
    "diffusers.utils.dynamic_modules_utils.get_class_from_dynamic_module": "pretrained_model_name_or_path: .",
    "transformers.AutoModel.from_pretrained": "pretrained_model_name_or_path: ., trust_remote_code: true",
    "transformers.dynamic_module_utils.get_class_in_module": "class_name: Any, module_path: evil.py",
    "hydra.utils.instantiate": "config: {_target_: os.system, command: touch canary}",
    "hydra.utils.call": "config: {_target_: os.system, command: touch canary}",
    "hydra.utils.get_method": "path: os.system",
    "omegaconf.OmegaConf.load": "file_: evil.yaml",
    "sdscratch.cli.main": "arguments: [train]",
    "sdscratch.config.build": "node: {_target_: os.system, command: touch canary}",
    "sdscratch.config.targets.import_module": "name: evil",
    "sdscratch.files.os.system": "command: touch canary",
    "sdscratch.run_folder.os.system": "command: touch canary",
    "sdscratch.commands.train.run": "cfg: {}",
    "sdscratch.doctor.pair.Pair.__init__.__globals__": "{}",
}
"""Targets and what they would be called with."""

SHAPES = {
    "plain": "{call}",
    "nested": "{{_target_: torch.optim.AdamW, _partial_: true, lr: {call}}}",
    "in a list": "[1, [{call}]]",
    "partial": "{{_target_: torch.optim.AdamW, _partial_: true, betas: [{partial}]}}",
    "not recursive": "{{_target_: torch.optim.AdamW, _partial_: true, _recursive_: false, lr: {call}}}",
    "behind an interpolation": "{{_target_: '${{name}}', command: touch canary}}",
}


@pytest.fixture(autouse=True)
def canary(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder with files that targets could run; nothing may be made in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("open('canary', 'w').close()\nclass Any:\n    pass\n")
    yield tmp_path / "canary"
    assert not (tmp_path / "canary").exists(), "code was executed"


def node(target: str, arguments: str, shape: str) -> str:
    body = "" if arguments == "{}" else f", {arguments}"
    call = f"{{_target_: {target}{body}}}"
    return SHAPES[shape].format(call=call, partial=call[:-1] + ", _partial_: true}")


def test_there_are_at_least_60_payloads():
    count = len(CALLS) * len(SHAPES) + len(PLACES) + len(FILES)
    print(f"{count} payloads by configurations")
    assert len(CALLS) + len(PLACES) + len(FILES) >= 60


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("target", CALLS)
def test_no_target_runs_code(target, shape):
    cfg = OmegaConf.create(f"name: {target}\nx: {node(target, CALLS[target], shape)}")
    with pytest.raises(ConfigError):
        check_config(cfg)
    with pytest.raises(ConfigError):
        build(cfg.x if OmegaConf.is_dict(cfg.x) else OmegaConf.create({"_target_": "torch.optim.AdamW", "lr": cfg.x}))


PLACES = [
    "optimizer={call}",
    "+callbacks.evil={call}",
    "+logger.evil={call}",
    "optimizer.lr={call}",
    "dataset={call}",
    "trainer._target_=os.system",
    "model._target_=sdscratch.models.unet.torch.load",
    "+anything={call}",
]


@pytest.mark.parametrize("place", PLACES)
def test_the_command_line_brings_in_no_code(place, capsys):
    call = "{_target_: os.system, command: touch canary}"
    assert main(["train", "experiment=tiny", "paths.runs=.", place.format(call=call)]) == 2
    assert "Traceback" not in capsys.readouterr().err


FILES = [
    "optimizer: {_target_: os.system, command: touch canary}",
    "name: !!python/object/apply:os.system [touch canary]",
    "name: !!python/object/new:subprocess.Popen [[touch, canary]]",
    "name: !!python/name:os.system",
    "name: !!python/module:evil",
    "name: ${oc.decode:\"__import__('os').system('touch canary')\"}",
    "name: ${eval:\"open('canary', 'w')\"}",
    "name: ${hydra:runtime.cwd}",
    "defaults: [{override /hydra/launcher: evil}]\nhydra: {launcher: {_target_: os.system, command: touch canary}}",
    "hydra: {sweeper: {_target_: os.system, command: touch canary}}",
    "hydra: {callbacks: {evil: {_target_: os.system, command: touch canary}}}",
]


@pytest.mark.parametrize("text", FILES)
@pytest.mark.parametrize("flag", [[], ["-m"]], ids=["run", "sweep"])
def test_a_file_of_someone_elses_brings_in_no_code(tmp_path, text, flag, capsys):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "evil.yaml").write_text(f"# @package _global_\n{text}\n")
    words = ["train", *flag, "experiment=evil", "--config-dir", str(tmp_path / "mine"), "paths.runs=."]
    assert main(words) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("text", FILES[:7])
@pytest.mark.parametrize("file", ["recipe.yaml", "config.yaml"])
def test_a_run_folder_of_someone_elses_brings_in_no_code(tmp_path, text, file, capsys):
    run = RunFolder(tmp_path / "runs" / "try1")
    run.create()
    run.set_state(status="running", step=1)
    (run.path / file).write_text(text)
    assert main(["resume", str(run.path)]) == 2
    main(["checkpoints", str(run.path), "prune"])
    assert "Traceback" not in capsys.readouterr().err

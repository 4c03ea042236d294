"""A configuration names parts of a run, never programs or files to load."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest
from omegaconf import OmegaConf

from sdscratch.config import build, check_config, find_target
from sdscratch.config.signatures import signature
from sdscratch.errors import ConfigError

HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "eval",
    "",
    "torch.load",
    "torch.hub.load",
    "torch.optim",
    "torch.optim.lr_scheduler",
    "torch.optim.lr_scheduler.warnings.warn",
    "torch.optim.optimizer.torch.load",
    "torch.optim..AdamW",
    "torch.optim.AdamW.__init__",
    "torch.optim.AdamW.__class__",
    "torch.optim.AdamW.mro",
    "torch.optimizers.AdamW",
    "logging.os.system",
    "pickle.loads",
    "sdscratch.cli.sys.exit",
    "sdscratch.cli.main",
    "sdscratch.__main__.main",
    "sdscratch.commands.train.run",
    "sdscratch.config.build",
    "sdscratch.randomness.np.load",
    "sdscratch.data.tar.os.remove",
    "sdscratch.models.encoders.Path",
    "sdscratch.models.encoders.torch.load",
    "sdscratch.models.UNet.load_state_dict",
    "sdscratchy.evil",
    "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.utilities.rank_zero_only",
    "lightning.pytorch.LightningModule.load_from_checkpoint",
    "lightning.pytorch.trainer.trainer.os.system",
    "lightning.pytorch.seed_everything",
    "diffusers.AutoencoderKL.from_pretrained",
    "diffusers.AutoencoderKL.load_config",
    "diffusers.StableDiffusionPipeline",
    "diffusers.utils.import_utils.importlib.import_module",
    "transformers.AutoModel.from_pretrained",
    "transformers.pipeline",
    "transformers.pipelines.pipeline",
    "transformers.dynamic_module_utils.get_class_from_dynamic_module",
    "transformers.utils.import_utils.direct_transformers_import",
    "_frozen_importlib.__import__",
]


@pytest.mark.parametrize("target", HOSTILE)
def test_no_target_runs_programs_or_loads_files(target):
    with pytest.raises(ConfigError):
        find_target(target)
    with pytest.raises(ConfigError):
        signature(target)


@pytest.mark.parametrize("shape", ["{node}", "{{a: [1, {node}]}}", "{{_target_: torch.optim.AdamW, lr: {node}}}"])
@pytest.mark.parametrize("flags", ["", ", _partial_: true", ", _args_: [touch ran]"])
def test_hostile_targets_are_refused_wherever_they_stand(shape, flags, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = shape.format(node=f"{{_target_: os.system, command: touch ran{flags}}}")
    cfg = OmegaConf.create(f"x: {text}")
    with pytest.raises(ConfigError, match="os.system"):
        check_config(cfg)
    with pytest.raises(ConfigError):
        build(cfg.x)
    assert not list(tmp_path.iterdir())


def test_a_target_behind_an_interpolation_is_judged_by_where_it_leads():
    cfg = OmegaConf.create({"evil": "os.system", "x": {"_target_": "${evil}", "command": "true"}})
    with pytest.raises(ConfigError, match="os.system"):
        build(cfg.x)


@pytest.mark.parametrize(
    "target",
    [
        "torch.optim.AdamW",
        "torch.optim.lr_scheduler.LambdaLR",
        "sdscratch.models.UNet.from_config",
        "diffusers.AutoencoderKL",
    ],
)
def test_the_parts_of_a_run_are_allowed(target):
    assert callable(find_target(target))


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("bitsandbytes.optim.AdamW8bit", "bitsandbytes", "optim8bit"),
        ("kornia.augmentation.RandomHorizontalFlip", "kornia", "augment"),
    ],
)
def test_what_an_extra_brings_is_named_with_it_where_it_is_absent(target, package, extra, monkeypatch):
    really_absent = find_spec(package) is None  # else its source has told what it takes
    for name in [name for name in sys.modules if name.startswith(f"{package}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    wanted = f"{target} needs {package}, which is not installed: pip install 'sdscratch[{extra}]'"
    with pytest.raises(ConfigError) as caught:
        build(OmegaConf.create({"_target_": target}))
    assert str(caught.value) == wanted
    if really_absent:
        with pytest.raises(ConfigError) as caught:
            check_config(OmegaConf.create({"part": {"_target_": target}}))
        assert str(caught.value).endswith(f"part._target_: {wanted}")

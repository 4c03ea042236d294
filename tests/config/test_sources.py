"""Reading a signature from source tells what importing would, without the import."""

import inspect
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from sdscratch.config import config_dir, find_target
from sdscratch.config.signatures import fits, signature
from sdscratch.config.sources import read_signature

SHIPPED = sorted(
    {target for file in config_dir().rglob("*.yaml") for target in re.findall(r"_target_: ([\w.]+)", file.read_text())}
)
OTHERS = [
    "torch.optim.SGD",
    "torch.optim.lr_scheduler.LambdaLR",
    "lightning.pytorch.callbacks.ModelCheckpoint",
    "lightning.pytorch.loggers.WandbLogger",
    "diffusers.UNet2DConditionModel",
    "sdscratch.models.UNet.from_config",
    "sdscratch.diffusion.FlowMatching",
]


def outline(taken: inspect.Signature) -> list[tuple[str, Any, bool, bool]]:
    """Names, kinds, which are required and which default to None."""
    return [(p.name, p.kind, p.default is p.empty, p.default is None) for p in taken.parameters.values()]


@pytest.mark.parametrize("target", [*SHIPPED, *OTHERS])
def test_source_and_import_agree(target):
    pytest.importorskip(target.partition(".")[0], reason="it belongs to an extra that is not installed")
    found, taken = read_signature(target)
    imported = find_target(target)
    assert found.module == imported.__module__
    assert outline(taken) == outline(inspect.signature(imported))


@pytest.mark.parametrize(
    "target",
    [
        "transformers.CLIPTextConfig",
        "sdscratch.diffusion.nothing",
        "sdscratch.nothing.Here",
        "sdscratch.models",
        "torch",
    ],
)
def test_where_the_source_does_not_tell_nothing_is_claimed(target):
    assert read_signature(target) is None


def test_types_of_the_source_judge_values():
    hints = signature("sdscratch.diffusion.DiffusionObjective").hints
    assert fits("epsilon", hints["prediction_type"]) and not fits("epsilonn", hints["prediction_type"])
    hints = signature("torch.optim.AdamW").hints
    assert fits(1e-4, hints["lr"]) and not fits("1e-4", hints["lr"]) and fits(None, hints["foreach"])


def test_a_wrong_configuration_is_refused_without_importing_torch(tmp_path):
    code = (
        "import sys\n"
        "from sdscratch.cli import main\n"
        "assert main(['train', 'experiment=tiny', '+optimizer.lrr=1', 'objective.min_snr_gamma=x']) == 2\n"
        "assert not {'torch', 'lightning', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "optimizer.lrr" in done.stderr and "objective.min_snr_gamma" in done.stderr

"""A training step has its host wait for the device once, for numbers that were on their way before the optimizer began."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from stages import latent_diffusion, quiet_trainer
from tiny import SMALLER
from torch.overrides import TorchFunctionMode

from sdscratch.bench.work import Kernels
from sdscratch.training import Guard, Previews, Validation
from sdscratch.training.injection import VARIABLE

READS = {"item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__"}
"""By which Python asks a tensor for its numbers."""

MAKES = {"tensor", "as_tensor", "new_tensor"}
"""By which numbers of the host are copied; to a device, it waits for what that is still at."""

FUSED = "_fused_adamw_"


class Asked(TorchFunctionMode):
    """Counts such questions and copies, and optimizer steps, in their sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in READS or name == FUSED or name in MAKES and (name == "new_tensor" or (kwargs or {}).get("device")):
            self.said.append(name)
        return func(*args, **(kwargs or {}))


def take(number: int, module: Any, datamodule: Any) -> None:
    """So many steps, from a loader that has everything ready."""
    batches = iter(datamodule.train_dataloader())
    ready = [next(batches) for _ in range(number)]
    module.trainer = datamodule.trainer = None
    quiet_trainer(max_steps=number).fit(module, torch.utils.data.DataLoader(ready, batch_size=None))


def test_the_host_asks_once_per_step_after_the_optimizer_was_told_what_to_do(tiny_config):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER))
    module.guard = Guard()
    with Asked() as asked, Kernels() as kernels:
        take(3, module, datamodule)
    first, last = asked.said.index(FUSED), len(asked.said) - asked.said[::-1].index("tolist")
    in_steps = asked.said[first:last]  # what comes before and after is Lightning setting up and tidying
    assert in_steps == 3 * [FUSED, FUSED, "tolist"], (
        "one of each of the optimizer's two groups, then what was agreed on"
    )
    assert kernels.waits == asked.said.count("item") + asked.said.count("__bool__"), "nobody waits without asking"


@pytest.mark.parametrize("settings", [{}, {"skip_spikes": True}], ids=["device", "host"])
@pytest.mark.parametrize("kind", ["nan", "grad"])
def test_whoever_decides_a_bad_step_changes_nothing_and_the_others_are_taken(tiny_config, monkeypatch, settings, kind):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER))
    module.guard = Guard(**settings)
    monkeypatch.setenv(VARIABLE, f"{kind}@1")
    seen: list[tuple[float, int]] = []
    update = module.ema.update

    def noted(network: Any) -> None:
        update(network)
        seen.append((float(sum(weight.double().sum() for weight in network.parameters())), module.global_step))

    monkeypatch.setattr(module.ema, "update", noted)
    before = float(sum(weight.double().sum() for weight in module.network.parameters()))
    quiet_trainer(max_steps=3, limit_val_batches=0).fit(module, datamodule=datamodule)
    assert [step for _, step in seen] == [0, 2] and module.ema.num_updates == 2
    assert before != seen[0][0] != seen[1][0] and all(math.isfinite(value) for value, _ in seen)


def test_positions_stay_with_the_host_when_a_batch_goes_to_the_device(tiny_config):
    _, datamodule = latent_diffusion(tiny_config(*SMALLER))
    batch = next(iter(datamodule.train_dataloader()))
    moved = datamodule.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["positions"] is batch["positions"] and moved["noise"].is_meta and moved.keys() == batch.keys()


def test_previews_are_drawn_in_the_trainers_precision_and_validation_measures_in_float32(tiny_config, tmp_path):
    module, datamodule = latent_diffusion(tiny_config(*SMALLER, "stage.preview_prompts=[a red circle]"))
    seen = []
    module.ema.network.conv_in.register_forward_hook(lambda *said: seen.append(said[-1].dtype))
    callbacks = [Validation(every=1), Previews(every=1)]
    trainer = quiet_trainer(precision="bf16-mixed", callbacks=callbacks, default_root_dir=tmp_path, limit_val_batches=0)
    trainer.fit(module, datamodule=datamodule)
    first = seen.index(torch.bfloat16)
    assert set(seen[:first]) == {torch.float32} and set(seen[first:]) == {torch.bfloat16}
    assert (tmp_path / "samples/step_00000001/ema.png").is_file()

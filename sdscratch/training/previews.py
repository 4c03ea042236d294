"""Shows what the averaged network can do, while training goes on."""

from __future__ import annotations

import lightning as L

from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised
from sdscratch.training.tracking import log_image
from sdscratch.training.validation import held_out


class Previews(StepCallback):
    """Every `every` steps and at the end: the stage's picture, `samples/step_00001000/ema.png`, and to W&B."""

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if trainer.is_global_zero and self.is_due(trainer, step):
            with module.aside():
                picture = module.preview(module.ema.network, held_out(trainer, module, whole=True))
                folder = RunFolder(trainer.default_root_dir).path / "samples" / f"step_{step:08d}"
                with said_not_raised("a preview is lost"):
                    folder.mkdir(parents=True, exist_ok=True)
                    picture.save(folder / "ema.png")
                log_image(trainer, "samples/ema", picture, step)

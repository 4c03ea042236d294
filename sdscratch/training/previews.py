"""Shows what the averaged network can do, while training goes on."""

from __future__ import annotations

import lightning as L

from sdscratch.files import write_atomically
from sdscratch.run_folder import RunFolder
from sdscratch.training.stage import Stage
from sdscratch.training.step_callback import StepCallback, said_not_raised
from sdscratch.training.tracking import log_preview
from sdscratch.training.validation import held_out


class Previews(StepCallback):
    """Every `every` steps and at the end: the stage's pictures, `samples/step_00001000/ema.png`, and to W&B.

    Drawn in the trainer's precision. (What is measured is measured in float32, so that it compares between machines.)
    """

    def on_step(self, trainer: L.Trainer, module: Stage, step: int) -> None:
        if not self.is_due(trainer, step):
            return
        with module.aside(), trainer.precision_plugin.val_step_context():
            shown = module.preview(module.ema.network, held_out(trainer, module, whole=True))
            if shown is not None:
                picture = shown.grid()
                folder = RunFolder(trainer.default_root_dir).path / "samples" / f"step_{step:08d}"
                with said_not_raised("a preview is lost"):
                    write_atomically(folder / "ema.png", lambda file: picture.save(file, "PNG"))
                log_preview(trainer, shown, picture, "ema", module.samples_seen(step))

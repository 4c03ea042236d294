"""One door for whatever names a finished model: a run, a checkpoint, a folder, a hub id, a single file."""

from __future__ import annotations

from pathlib import Path

from sdscratch.errors import ConfigError
from sdscratch.interop.diffusers_folder import Model, find_model_folder, load_model_folder
from sdscratch.interop.model_file import ModelFile
from sdscratch.interop.run_checkpoint import checkpoint_model, checkpoint_of, checkpoint_unet, run_around
from sdscratch.models.unet_kinds import AnyUNet
from sdscratch.run_folder import RunFolder


def load_model(source: str | Path) -> Model:
    """The model with its averaged weights, on the CPU in float32.

    source: a finished run; a checkpoint of any run, RUN/checkpoints/step_00001000.ckpt; a model folder, ours or another
    StableDiffusionPipeline of SD 1.x; a hub id in the local cache; or one file, as `sdscratch import` takes them.
    Raises DataError, in one line, where there is none or it is damaged.
    """
    path = Path(source)
    if run := run_around(path):
        return checkpoint_model(checkpoint_of(run, path))
    return ModelFile(path).load() if path.is_file() else load_model_folder(find_model_folder(source))


def raw_weights(source: str | Path, like: AnyUNet) -> AnyUNet:
    """A network like `like` as training left it: of the checkpoint that is named, or the newest intact one of the run.

    In eval mode. Raises ConfigError where there are no checkpoints.
    """
    path = Path(source)
    run = run_around(path)
    checkpoint = checkpoint_of(run, path) if run else RunFolder(path).newest_intact_checkpoint()
    if checkpoint is None:
        raise ConfigError("weights=raw needs a run with checkpoints; a model folder holds the ema weights only")
    return checkpoint_unet(checkpoint, "raw", like)


def run_of(source: str | Path) -> RunFolder:
    """The run that is named, or whose checkpoint is named; of other models a folder that holds no run."""
    return run_around(Path(source)) or RunFolder(source)

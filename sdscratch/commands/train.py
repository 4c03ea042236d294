"""`sdscratch train`: one stage of training, into its run folder."""

from __future__ import annotations

import gc
import platform
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf

from sdscratch import __version__
from sdscratch.checkpoint_file import Checkpoint
from sdscratch.commands import launch
from sdscratch.commands.assembly import make_stage
from sdscratch.commands.code_version import commit
from sdscratch.commands.quiet import quieten_libraries
from sdscratch.commands.trainer import check_trainer, make_trainer
from sdscratch.config import (
    Change,
    build,
    build_named,
    changes,
    check_identity,
    load_config,
    mask,
    save_config,
    settings,
)
from sdscratch.console import say, warn
from sdscratch.data import BaseDataModule
from sdscratch.data.loading import end_workers, lost_workers_named
from sdscratch.errors import CannotWriteError, ConfigError, RunFolderError, SdscratchError, StoppedError, check_whole
from sdscratch.files import write_atomically, write_json
from sdscratch.models.encoders import fingerprint
from sdscratch.run_folder import RunFolder, folder_below
from sdscratch.training import LatentDiffusion, Stage, ranks
from sdscratch.training.initial_weights import InitialWeights
from sdscratch.training.optim import check_next_step
from sdscratch.training.preemption import StopNow, StopSignals, stopped
from sdscratch.training.rewind import Start, start_at, turn_back
from sdscratch.training.step_callback import said_not_raised
from sdscratch.training.validation import held_out

MOST_THREADS = 1024
"""More than any machine makes use of, and fewer than OpenMP dies of."""


def run(cfg: DictConfig) -> None:
    """Train what the configuration says, or go on with it."""
    if cfg.init_from is not None and cfg.resume_from is not None:
        raise ConfigError(
            f"init_from={cfg.init_from} and resume_from={cfg.resume_from} exclude each other: one begins a run, the other "
            "goes on with one, whatever it began from. Set one; or `sdscratch resume RUN`"
        )
    what_next(train(cfg), cfg)


def what_next(folder: RunFolder, cfg: DictConfig) -> None:
    """Say what can be done with the model of a finished run."""
    if launch.is_rank():
        return
    model = shlex.quote(str(folder.model_folder))
    if "objective" in cfg:
        prompt = shlex.quote(next(iter(cfg.stage.get("preview_prompts") or ()), "some text"))
        say(f"pictures: sdscratch sample model={shlex.quote(str(folder.path))} prompt={prompt}")
    elif "text_encoder" in cfg:
        say(f"to train a UNet on its captions: text_encoder=trained text_encoder.path={model}")
    else:
        say(
            f"to train a UNet on its latents: vae=trained vae.path={model}; `sdscratch data encode` makes them beforehand"
        )


def train(cfg: DictConfig) -> RunFolder:
    """Train one stage to its last step and leave a model folder. The configuration has been checked.

    `init_from` counts where there is no checkpoint to go on from. What is refused changes nothing: the run's own files are
    written when its first step is about to begin. On several devices, this process starts one per device, which come here
    again; see commands/launch.py.
    """
    for name in ("max_steps", "global_batch_size"):
        check_whole(name, cfg[name])
    if cfg.threads is not None:
        check_whole("threads", cfg.threads, 1, MOST_THREADS)
    check_trainer(cfg)
    if cfg.resume_from not in (None, "auto"):
        raise ConfigError(f"resume_from={cfg.resume_from} is unknown; expected auto, or `sdscratch resume RUN`")
    folder = RunFolder(folder_below(cfg.paths.runs, cfg.name))
    if count := launch.ranks_to_start(cfg.trainer):
        if not _is_finished(folder, cfg):
            launch.launch(cfg, count, folder)
        return folder
    with StopSignals(str(folder.path), announce=not launch.is_rank()) as signals:
        _join(cfg, folder, signals)
        try:
            start = ranks.agreed(lambda: _open(folder, cfg))
            while start is not None:
                start = _train(cfg, folder, start, signals)
                gc.collect()  # after a rewind, before the network is made again
        except BaseException as error:
            if folder.is_locked and folder.state().get("status") == "running":
                status = "stopped" if isinstance(error, (StoppedError, StopNow)) else "failed"
                with suppress(CannotWriteError):
                    folder.set_state(status=status)
            raise
        finally:
            end_workers()
            folder.unlock()
    return folder


def _open(folder: RunFolder, cfg: DictConfig) -> Start | None:
    """Lock the folder and choose where to start; None for a finished run. By one rank alone.

    In this order: while checkpoints are read, no other process goes on with the run, and what one has done is seen.
    """
    if _is_finished(folder, cfg):
        return None
    folder.create()
    folder.lock()
    try:
        return None if _is_finished(folder, cfg) else start_at(folder, _starting_point(folder, cfg))
    except SdscratchError:
        folder.unlock()  # it is not this session's
        raise


def _train(cfg: DictConfig, folder: RunFolder, start: Start, signals: StopSignals) -> Start | None:
    """Train from `start` to the end; or to where the run must turn back, giving its new start."""
    quieten_libraries()
    if cfg.threads is not None:
        torch.set_num_threads(cfg.threads)
    begun_before = folder.holds_a_run()
    datamodule = ranks.first_then_others(lambda: _datamodule(cfg))
    datamodule.start_step, datamodule.skipped = start.step, start.skipped
    module = make_stage(cfg, datamodule, folder)
    module.stop_signals, module.source_weights = signals, datamodule.source_weights
    module.settings = settings(cfg) | _fingerprints(datamodule, module)
    changed = _changes(cfg, folder, start.checkpoint, module.settings)
    lineage = _first_weights(cfg, module) if start.checkpoint is None else {}

    def begin(trainer: L.Trainer, _: L.LightningModule) -> None:
        check_next_step(trainer.optimizers[0])
        signals.at_boundaries = True
        if trainer.is_global_zero:
            _write_beginnings(folder, cfg)
            _write_lineage(folder, lineage, trainer.global_step, changed)
            folder.set_state(status="running", stage=type(module).__name__, max_steps=cfg.max_steps)
            where = f"going on after step {start.step}" if start.checkpoint else _beginning(cfg, begun_before)
            parts = f"{trainer.world_size} x {trainer.accumulate_grad_batches} x {datamodule.micro_batch_size}"
            say(
                f"{folder.path}: {where}; {cfg.global_batch_size} samples per step = {parts} "
                "(devices, accumulated micro-batches, their size)"
            )
            for change in changed:
                say(f"  changed: {change}")
            if isinstance(module, LatentDiffusion) and (
                doubt := module.objective.doubt(module.sampling.num_inference_steps)
            ):
                warn(doubt)

    callbacks = [LambdaCallback(on_train_start=begin), *build_named(cfg.callbacks).values()]
    loggers = build_named(cfg.logger) if ranks.is_first() else {}
    trainer = make_trainer(cfg, folder, callbacks, list(loggers.values()))
    with lost_workers_named(datamodule.num_workers, f"`sdscratch resume {folder.path}`"):
        trainer.fit(module, datamodule, ckpt_path=start.checkpoint and str(start.checkpoint.path), weights_only=True)
    step, stop = trainer.global_step, ranks.highest(signals.number, trainer.strategy.root_device)
    signals.at_boundaries = False
    if stop:
        with said_not_raised("state.json is out of date"):
            if trainer.is_global_zero:
                folder.set_state(status="stopped", step=step, samples_seen=module.samples_seen(step))
        _part(trainer, "aborted")
        raise stopped(folder.path, stop, step)
    if (guard := module.guard) and guard.gave_up:
        since = guard.bad_since
        assert since is not None
        return ranks.agreed(lambda: turn_back(folder, step, since, datamodule.skipped, guard.rewinds))
    if step < cfg.max_steps:
        raise RunFolderError(f"{folder.path} stopped at step {step}: `sdscratch resume {folder.path}`")
    if trainer.is_global_zero:
        about = _provenance(cfg, datamodule, module, trainer)
        module.save(module.ema.network, folder.model_folder, held_out(trainer, module, whole=True), about)
        value = start.checkpoint.val_loss if start.checkpoint and start.step == step else module.val_loss
        folder.set_objective(module.objective_metric, value, step, about["samples_seen"])
        folder.set_state(status="done", step=step, samples_seen=about["samples_seen"])
        measured = "" if value is None else f"; {module.objective_metric} {value:.4f} (EMA weights)"
        say(f"{folder.path}: done, {step} steps{measured}. The model: {folder.model_folder}")
    _part(trainer, "success")
    return None


def _join(cfg: DictConfig, folder: RunFolder, signals: StopSignals) -> None:
    """Meet the other ranks, where torchrun or SLURM has started some. Raises LostRankError where they cannot be met."""
    if (world := launch.world_size(cfg.trainer)) < 2:
        return
    quieten_libraries()
    strategy = make_trainer(cfg, folder).strategy
    with signals.ending_at_once(), ranks.patience(world):
        strategy.setup_environment()


def _part(trainer: L.Trainer, status: str) -> None:
    """Close the logs; leave together, so that no launcher takes one rank's end for a reason to kill a saving one."""
    for logger in trainer.loggers:
        logger.finalize(status)
    ranks.meet_and_part()


def _datamodule(cfg: DictConfig) -> BaseDataModule:
    datamodule: BaseDataModule = build(cfg.dataset)
    datamodule.prepare_data()
    return datamodule


def _is_finished(folder: RunFolder, cfg: DictConfig) -> bool:
    """Whether there is nothing left to do. Raises ConfigError where what is finished is another run than this one."""
    state = folder.state()
    done = state.get("status") == "done" and state.get("step", 0) >= cfg.max_steps and folder.model_folder.is_dir()
    if cfg.resume_from != "auto" or not done:
        return False
    if folder.config_file.is_file():
        before, now = settings(load_config(folder.config_file)), settings(cfg)
        check_identity(str(folder.path), [c for c in changes(before, now) if c.key in now], cfg.resume.allow_change)
    print(f"{folder.path} is finished: nothing to do")
    return True


def _starting_point(folder: RunFolder, cfg: DictConfig) -> Checkpoint | None:
    if cfg.resume_from == "auto":
        return folder.newest_intact_checkpoint()
    if folder.holds_a_run():
        raise RunFolderError(
            f"{folder.path} already holds a run. Go on with it by `sdscratch resume {folder.path}`, "
            "or choose another name="
        )
    return None


def _fingerprints(datamodule: BaseDataModule, module: Stage) -> dict[str, Any]:
    """Of what the configuration only points at: the data, and networks trained elsewhere."""
    found: dict[str, Any] = {"dataset.fingerprint": datamodule.fingerprint}
    if isinstance(module, LatentDiffusion):
        found["vae.fingerprint"] = fingerprint(module.encoders.vae)
        found["vae.scaling_factor"] = module.encoders.vae.config.scaling_factor
        found["text_encoder.fingerprint"] = module.encoders.text.fingerprint
    return found


def _changes(cfg: DictConfig, folder: RunFolder, checkpoint: Checkpoint | None, now: Mapping[str, Any]) -> list[Change]:
    """What is not as it was at the checkpoint. Raises ConfigError where it would be another run."""
    changed = changes(checkpoint.load(mapped=True).get("settings", {}), now) if checkpoint else []
    check_identity(str(folder.path), changed, cfg.resume.allow_change)
    return changed


def _first_weights(cfg: DictConfig, module: Stage) -> dict[str, Any]:
    """Random ones stay as they are. What lineage.json says of a new run."""
    initial = InitialWeights(**cfg.init)
    return {"init_from": initial.give(module, str(cfg.init_from)) if cfg.init_from is not None else None}


def _beginning(cfg: DictConfig, begun_before: bool) -> str:
    if cfg.init_from is not None:
        return f"from the start, with the {cfg.init.weights} weights of {cfg.init_from}"
    return "from the start" + (", for no checkpoint was ever completed" if begun_before else "")


def _write_lineage(folder: RunFolder, lineage: Mapping[str, Any], step: int, changed: list[Change]) -> None:
    """With the changes that hold from here on; those that a session had recorded beyond this step never happened."""
    before = [] if lineage else [change for change in folder.lineage().get("changes", []) if change["step"] < step]
    now = [{"step": step, **change._asdict()} for change in changed]
    folder.set_lineage(**lineage, changes=[*before, *now])


def _write_beginnings(folder: RunFolder, cfg: DictConfig) -> None:
    save_config(cfg, folder.config_file)
    recipe = cfg.copy()
    recipe.paths = OmegaConf.to_container(cfg.paths, resolve=True)  # from the environment, which may differ next time
    save_config(recipe, folder.recipe_file, resolve=False)
    words = mask(" ".join(shlex.quote(word) for word in sys.argv[1:]))
    write_atomically(folder.path / "overrides.txt", lambda file: file.write(f"{words}\n".encode()))
    write_json(
        folder.path / "environment.json",
        {
            "sdscratch": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "lightning": L.__version__,
            "platform": platform.platform(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        },
    )


def _provenance(cfg: DictConfig, datamodule: BaseDataModule, module: Stage, trainer: L.Trainer) -> dict[str, Any]:
    """Where a model folder's weights come from."""
    return {
        "weights": "ema",
        "run": str(cfg.name),
        "step": trainer.global_step,
        "samples_seen": module.samples_seen(trainer.global_step),
        "seed": cfg.seed,
        "resolution": cfg.dataset.resolution,
        "data": datamodule.about(),
    }

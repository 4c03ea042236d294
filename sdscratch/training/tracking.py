"""Weights & Biases beside the files: the same rows and pictures, for those who have it. Training never waits for it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from sdscratch.console import warn
from sdscratch.data.grid import CaptionedImages
from sdscratch.files import write_atomically
from sdscratch.masking import mask
from sdscratch.services import wandb_key

Mode = Literal["auto", "online", "offline"]
ID = re.compile(rb"[\w-]{1,64}")
SECONDS_TO_START = 4.0  # then it goes offline
SECONDS_TO_FINISH = 30.0  # for what has not been sent when the run ends


class WandbTracker(Logger):
    """One W&B run per run folder, whatever the number of resumes; its id is kept in `wandb/id`.

    A server that refuses, or is silent for SECONDS_TO_START, means offline files instead and one warning; rows go to
    wandb's own process, which sends them when it can; what that process or the disk cannot take is given up. No failure
    of tracking reaches training.

    name: the run's, which may be a number.
    group: under which W&B shows runs together, such as the phases of a curriculum.
    mode: "auto" goes offline where no key is to be found, so that nobody is asked for one; WANDB_MODE overrules it.
    """

    def __init__(
        self,
        run_dir: str,
        name: str | float,
        project: str = "sdscratch",
        mode: Mode = "auto",
        group: str | float | None = None,
    ) -> None:
        super().__init__()
        self.run_dir, self.project, self.mode = Path(run_dir), project, mode
        self.group = None if group is None else str(group)
        self._name = str(name)
        self._run: Any = None
        self._given_up = False

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> str:
        """The id of the W&B run; a new one where there is none that W&B would take."""
        file = self.run_dir / "wandb" / "id"
        if not file.is_file() or not ID.fullmatch(file.read_bytes().strip()):
            write_atomically(file, lambda out: out.write(os.urandom(4).hex().encode()))
        return file.read_text().strip()

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started when first asked for; None where that failed. Lightning asks before training begins."""
        if self._run is None and not self._given_up:
            self._run = self._start()
        return self._run

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration lies beside the run."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row; its `samples_seen` is the horizontal axis of every curve, which compares between batch sizes."""
        self._log({**metrics, "step": step})

    @rank_zero_only
    def log_preview(self, shown: CaptionedImages, grid: Image.Image, weights: str, samples_seen: int) -> None:
        """All pictures as one, and as a table with the caption and the weights (ema or raw) beside each."""
        self._log(
            {f"samples/{weights}": grid, f"samples/{weights}_table": (weights, shown), "samples_seen": samples_seen}
        )

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Send what is left, for SECONDS_TO_FINISH at most; the files stay."""
        run, self._run = self._run, None
        if run is None:
            return
        try:
            run.finish(exit_code=0 if status == "success" else 1)
        except Exception as error:
            warn(f"W&B has not got everything ({_said(error)}): `wandb sync {self.run_dir}/wandb/run-*` sends the rest")

    def _log(self, row: dict[str, Any]) -> None:
        run = self.experiment
        if run is None:
            return
        try:
            run.log({key: _as_media(value) for key, value in row.items()})
        except Exception as error:  # its process is gone, its disk is full: whatever it is, it is not worth a run
            self._give_up(f"W&B has failed ({_said(error)}): going on without it")

    def _start(self) -> Any:
        mode: Any = os.environ.get("WANDB_MODE") or self.mode
        if mode == "auto":
            mode = "online" if wandb_key() else "offline"
        try:
            return self._init(mode)
        except Exception as error:
            warn(
                f"W&B cannot be reached ({_said(error)}): going on offline. "
                f"`wandb sync {self.run_dir}/wandb/offline-run-*` sends it later"
            )
            _end_process()  # it would hold on to the run's id
        try:
            return self._init("offline")
        except Exception as error:
            self._give_up(f"W&B cannot be used at all ({_said(error)}): going on without it")

    def _init(self, mode: Any) -> Any:
        os.environ.setdefault("WANDB_SILENT", "true")
        if not os.environ.get("WANDB_MODE"):
            os.environ.pop("WANDB_MODE", None)  # empty, as .env.example leaves it, it is no mode to wandb
        import wandb

        run = wandb.init(
            project=self.project,
            name=self.name,
            group=self.group,
            id=self.version,
            dir=str(self.run_dir),
            mode=mode,
            resume="allow",
            reinit="finish_previous",
            settings=wandb.Settings(
                x_disable_meta=True,  # the command line, which the shell may have put a secret into
                console="off",  # it would stand between every print and the terminal
                init_timeout=SECONDS_TO_START,
                login_timeout=SECONDS_TO_START,
                finish_timeout=SECONDS_TO_FINISH,
                finish_timeout_raises=True,
            ),
        )
        run.define_metric("samples_seen")
        run.define_metric("*", step_metric="samples_seen", step_sync=True)
        return run

    def _give_up(self, reason: str) -> None:
        warn(reason)
        self._run, self._given_up = None, True
        _end_process()  # else it would complain again when the program ends


def log_preview(trainer: L.Trainer, shown: CaptionedImages, grid: Image.Image, weights: str, samples_seen: int) -> None:
    """Give pictures to the W&B run, if there is one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbTracker):
            logger.log_preview(shown, grid, weights, samples_seen)


def _as_media(value: Any) -> Any:
    import wandb

    if isinstance(value, Image.Image):
        return wandb.Image(value)
    if isinstance(value, tuple):
        weights, shown = value
        rows = [
            [mask(caption), weights, wandb.Image(x)] for caption, x in zip(shown.captions, shown.images, strict=True)
        ]
        return wandb.Table(columns=["prompt", "weights", "picture"], data=rows)
    return value


def _end_process() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()


def _said(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__

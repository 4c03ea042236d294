"""`sdscratch doctor`: is this machine ready for that run? Each thing is tried once; nothing is waited for for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from sdscratch.commands.footprint import footprint
from sdscratch.config import build, check_config, missing_keys
from sdscratch.doctor.finding import Check, Finding, Level
from sdscratch.doctor.versions import imports, torchvision, versions
from sdscratch.errors import SdscratchError

STAND_INS = {"name": "doctor", "max_steps": 100_000, "global_batch_size": 16, "dataset.path": "${paths.data}"}
"""For what must be set to train, but not to look at a machine."""

STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def run(cfg: DictConfig) -> None:
    """Print a line for each finding. Raises SdscratchError, exit code 2, when something fails."""
    missing = [key for key in missing_keys(cfg) if key in STAND_INS]
    for key in missing:
        OmegaConf.update(cfg, key, STAND_INS[key])
    check_config(cfg)
    if missing:
        print(
            "no run is named: looking for one of Stable Diffusion's size (a small one: sdscratch doctor experiment=tiny)"
        )
    report = Report()
    report.add(versions())
    report.add(torchvision())
    report.add(imports())
    report.stop_if_failed()  # what follows needs them all

    from sdscratch.data.loading import end_workers

    waiting = _in_the_background(cfg)
    lacking: Level = "warn" if missing else "fail"
    for about, check, seconds in _one_by_one(cfg, lacking):
        report.add(Check(about, check, seconds).findings())
    for check in waiting:
        report.add(check.findings())
    end_workers()  # of a loader that gave no answer: Python would wait for them
    report.stop_if_failed()
    warnings = {0: "", 1: ", with 1 warning"}.get(report.warnings, f", with {report.warnings} warnings")
    if missing:
        print(f"this machine is ready{warnings}; the run is not, for these are not set: {', '.join(missing)}")
        print("with the words of a whole run, it is looked at too: sdscratch doctor experiment=tiny")
    else:
        print(f"ready to train {cfg.name}{warnings}: {cfg.max_steps} steps of {cfg.global_batch_size} samples")


class Report:
    """Findings, shown as they come."""

    def __init__(self) -> None:
        self.console = Console(highlight=False, soft_wrap=True)
        self.failures: list[str] = []
        self.warnings = 0

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            style = STYLE[finding.level]
            self.console.print(f"[{style}]{finding.level:<4}[/]  {escape(finding.about):<12}  {escape(finding.found)}")
            if finding.remedy:
                self.console.print(f"                    -> {escape(finding.remedy)}")
            self.warnings += finding.level == "warn"
            if finding.level == "fail":
                self.failures.append(finding.about)

    def stop_if_failed(self) -> None:
        if self.failures:
            raise SdscratchError(f"not ready to train: {', '.join(self.failures)}; see above for what to do")


def _in_the_background(cfg: DictConfig) -> list[Any]:
    """What mostly waits: for other processes, which are forked before there are threads, and for the network."""
    import torch

    from sdscratch.doctor import network
    from sdscratch.doctor.pair import Pair

    checks: list[Any] = [Pair("gloo")]
    if gpus := min(2, torch.cuda.device_count()):
        checks.append(Pair("nccl", gpus, seconds=60))
    if tracker := (cfg.get("logger") or {}).get("wandb"):
        checks.append(Check("W&B", lambda: network.wandb(str(tracker.get("mode", "auto"))), seconds=5))
    return [*checks, Check("hub", network.hub, seconds=5)]


def _one_by_one(cfg: DictConfig, lacking: Level) -> Iterator[tuple[str, Callable[[], Iterable[Finding]], float]]:
    """What computes or writes: name, check, seconds that it may take. lacking: level of weights or data that are not here."""
    from sdscratch.doctor import machine
    from sdscratch.doctor.disk import disk
    from sdscratch.doctor.loading import weights

    trainer = cfg.trainer
    device = machine.device_of(str(trainer.accelerator))
    yield "devices", lambda: machine.devices(str(trainer.accelerator), trainer.devices), 30
    yield "bf16", lambda: machine.bf16(device, str(trainer.precision)), 30
    yield "attention", lambda: machine.attention(device), 60
    for name in ("vae", "text_encoder"):
        if (cfg.get(name) or {}).get("path"):
            yield name, partial(weights, name, str(cfg[name].path), lacking), 10
    if "objective" in cfg:
        yield "objective", lambda: _objective(cfg), 10
    yield "disk", lambda: disk(Path(cfg.paths.runs), *footprint(cfg)), 60
    yield "loader", lambda: _loader(cfg, lacking), 30


def _objective(cfg: DictConfig) -> Iterator[Finding]:
    if doubt := build(cfg.objective).doubt(cfg.sampler.num_inference_steps):
        yield Finding("warn", "objective", doubt)


def _loader(cfg: DictConfig, lacking: Level) -> Iterator[Finding]:
    from sdscratch.data import LatentCollate
    from sdscratch.doctor.loading import rate

    sources = [cfg.dataset, *cfg.dataset.get("sources", {}).values()]
    paths = [Path(source.path) for source in sources if source.get("path")]
    if missing := [path for path in paths if not _holds_shards(path)]:
        if cfg.dataset._target_ == "sdscratch.data.ShapesDataModule":
            yield Finding("ok", "loader", f"not tried: training draws its scenes into {missing[0]} first")
        else:
            remedy = "set dataset.path to a folder of shards; dataset=shapes draws some"
            yield Finding(lacking, "loader", f"not tried: there are no shards in {missing[0]}", remedy)
        return
    datamodule = build(cfg.dataset)
    if "objective" in cfg:
        latent_shape = (cfg.model.in_channels, cfg.model.sample_size, cfg.model.sample_size)
        timesteps = build(cfg.objective).timesteps
        datamodule.collate = LatentCollate(cfg.seed, timesteps, cfg.caption_dropout, latent_shape)
    yield from rate(datamodule.train_dataloader(), cfg.global_batch_size, cfg.dataset.num_workers)


def _holds_shards(path: Path) -> bool:
    """Or drawn data, in two folders."""
    return any(path.glob("*.tar")) or all((path / part / "manifest.json").exists() for part in ("train", "val"))

"""`sdscratch doctor`: is this machine ready for that run? Each thing is tried once; nothing is waited for for long."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.markup import escape

from sdscratch.commands import footprint
from sdscratch.config import build, check_config
from sdscratch.doctor.finding import Check, Finding
from sdscratch.doctor.versions import imports, torchvision, versions
from sdscratch.errors import SdscratchError

STYLE = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def run(cfg: DictConfig) -> None:
    """Print a line for each finding. Raises SdscratchError, exit code 2, when something fails."""
    if OmegaConf.is_missing(cfg.dataset, "path"):  # asked without a run in mind
        cfg.dataset.path = cfg.paths.data
    check_config(cfg)
    report = Report()
    report.add(versions())
    report.add(torchvision())
    report.add(imports())
    report.stop_if_failed()  # what follows needs them all

    waiting = _in_the_background(cfg)
    for about, check, seconds in _one_by_one(cfg):
        report.add(Check(about, check, seconds).findings())
    for check in waiting:
        report.add(check.findings())
    report.stop_if_failed()
    print("ready to train" if not report.warnings else f"ready to train, with {report.warnings} warnings")


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


def _one_by_one(cfg: DictConfig) -> Iterator[tuple[str, Callable[[], Iterable[Finding]], float]]:
    """What computes or writes: name, check, seconds that it may take."""
    from sdscratch.doctor import machine
    from sdscratch.doctor.disk import checkpoint_size, disk
    from sdscratch.doctor.loading import weights

    trainer = cfg.trainer
    device = machine.device_of(str(trainer.accelerator))
    yield "devices", lambda: machine.devices(str(trainer.accelerator), trainer.devices), 30
    yield "bf16", lambda: machine.bf16(device, str(trainer.precision)), 30
    yield "attention", lambda: machine.attention(device), 60
    for name in ("vae", "text_encoder"):
        if (cfg.get(name) or {}).get("path"):
            yield name, partial(weights, name, str(cfg[name].path)), 10
    yield (
        "disk",
        lambda: disk(Path(cfg.paths.runs), checkpoint_size(footprint.network(cfg)), footprint.checkpoints(cfg)),
        60,
    )
    yield "loader", lambda: _loader(cfg), 30


def _loader(cfg: DictConfig) -> Iterator[Finding]:
    from sdscratch.data import LatentCollate
    from sdscratch.doctor.loading import rate

    sources = [cfg.dataset, *cfg.dataset.get("sources", {}).values()]
    paths = [Path(source.path) for source in sources if source.get("path")]
    if missing := [path for path in paths if not _holds_shards(path)]:
        remedy = "set dataset.path; `sdscratch data shapes` draws a data set, training draws dataset=shapes by itself"
        yield Finding("warn", "loader", f"not tried: there are no shards in {missing[0]}", remedy)
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

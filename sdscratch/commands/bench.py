"""`sdscratch bench`: how fast it is, beside others that do the same."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sdscratch.commands.data_paths import optional
from sdscratch.config import build
from sdscratch.console import say
from sdscratch.errors import CannotWriteError, ConfigError, SdscratchError, check_choice, check_whole

if TYPE_CHECKING:
    from sdscratch.bench.report import Findings
    from sdscratch.bench.setting import Setting
    from sdscratch.models import UNet

SUBJECTS = ("unet", "train", "loader", "sample", "encode", "startup")


class SlowerError(SdscratchError):
    """Something is slower than its floor."""

    exit_code = 1


def run(cfg: DictConfig) -> None:
    """Measure, write bench.json, bench.md and bench.png, and end with a line `verdict: ...`.

    Exit code 0 whatever the verdict; with strict=true, 1 where it is `slower`.
    """
    check_choice("what", cfg.what, (*SUBJECTS, "all"))
    check_whole("threads", cfg.threads)
    quieten()
    import torch

    from sdscratch.bench.report import Findings

    setting = setting_of(cfg, cfg.batch_size, cfg.latent_size)
    torch.set_num_threads(cfg.threads)
    findings, out = Findings(), writable(cfg, f"experiments/bench-{cfg.what}")
    rate = preheated(findings, setting, cfg.preheat)
    trace = out / "trace.json" if cfg.trace else None
    for name in SUBJECTS if cfg.what == "all" else [cfg.what]:
        say(f"{name} ...")
        findings.add(_benchmark(name, cfg, setting, rate, trace)())
    conclude(findings, setting.about(), out, f"sdscratch bench {cfg.what}", cfg.strict)


def quieten() -> None:
    """What others say of what they would like to have installed."""
    import diffusers
    import transformers

    from sdscratch.commands.quiet import quieten_libraries

    quieten_libraries()
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity_error()


def preheated(findings: Findings, setting: Setting, seconds: float) -> float | None:
    """The rate of a matrix product on a GPU, which is warm then."""
    from sdscratch.bench.report import Fact
    from sdscratch.bench.setting import preheat

    if not setting.on_cuda:
        return None
    rate = preheat(setting.device, seconds)
    findings.facts.append(Fact("matrix product, bfloat16", rate, "TFLOP/s"))
    return rate


def conclude(findings: Findings, about: dict[str, Any], out: Path, command: str, strict: bool) -> None:
    """Write it down and say it; last, the worst of all verdicts, and the ratio that it is about.

    about: settings and machine. command: where it was not called from a command line. Raises SlowerError where something is
    below its floor, if strict.
    """
    from sdscratch.bench.report import PAGE, write_report

    write_report(out, _command(command), about, findings)
    for c in findings.comparisons:
        say(
            f"{c.title}: {c.ratio:.3f} times as fast as {c.peer} ({c.p10:.3f} to {c.p90:.3f}; null {c.null:.3f}): {c.verdict}"
        )
    for fact in findings.facts:
        say(f"{fact.title}: {fact.value:.4g} {fact.unit}{'' if fact.verdict is None else f': {fact.verdict}'}")
    for what in findings.not_measured:
        say(f"not measured: {what}")
    print(out / PAGE)
    _say_verdict(findings, strict)


def writable(cfg: DictConfig, otherwise: str) -> Path:
    """The folder `out`, or the other; what it cannot be, is found out before anything is measured."""
    out = Path(optional(cfg, "out") or otherwise)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CannotWriteError(
            f"cannot write into {out}: {error.strerror or error}; set out= to another folder"
        ) from error
    return out


def network_of(cfg: DictConfig) -> UNet:
    """The one that is configured. Raises ConfigError where diffusers has none like it."""
    network = build(cfg.model)
    if network.config["_class_name"] != "UNet2DConditionModel":
        raise ConfigError(
            f"{cfg.model._target_} is a network that diffusers has not, so there is nothing to compare it with: set model= to "
            "another, such as model=unet_mid"
        )
    return network


def _command(otherwise: str) -> str:
    """Without where the results go, which they do not depend on."""
    if sys.argv[1:2] != ["bench"]:
        return otherwise
    return shlex.join(["sdscratch", *(word for word in sys.argv[1:] if not word.startswith("out="))])


def _say_verdict(findings: Findings, strict: bool) -> None:
    judged = [(c.verdict, c.ratio, c.shortfall) for c in findings.comparisons]
    judged += [(fact.verdict, fact.ratio, fact.shortfall) for fact in findings.facts if fact.verdict is not None]
    if not judged:
        return
    order = ("slower", "inconclusive", "ok")
    verdict, ratio, shortfall = min(judged, key=lambda found: (order.index(found[0]), found[1]))
    print(f"verdict: {verdict} ratio={ratio:.3f}")
    if strict and verdict == "slower":
        raise SlowerError(shortfall)


def setting_of(cfg: DictConfig, batch_size: int, latent_size: int) -> Setting:
    """What the configuration says, and the device where it does not."""
    import torch

    from sdscratch.bench.setting import Setting

    try:
        device = torch.device(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:  # torch has no class of its own for it
        raise ConfigError(f"device={cfg.device} is unknown; expected cpu or cuda") from error
    on_cuda = device.type == "cuda"
    return Setting(
        device,
        batch_size,
        latent_size,
        cfg.rounds,
        precision=cfg.precision or ("bf16-mixed" if on_cuda else "32-true"),
        channels_last=on_cuda if cfg.channels_last is None else cfg.channels_last,
        compile=cfg.compile or ("regions" if on_cuda else "no"),
    )


def _benchmark(
    name: str, cfg: DictConfig, setting: Setting, rate: float | None, trace: Path | None
) -> Callable[[], Findings]:
    from sdscratch.bench.encode import bench_encode
    from sdscratch.bench.loader import bench_loader
    from sdscratch.bench.sample import bench_sample
    from sdscratch.bench.startup import bench_startup
    from sdscratch.bench.unet import bench_unet

    return {
        "unet": lambda: bench_unet(network_of(cfg), setting),
        "train": lambda: _train(cfg, setting, rate, trace),
        "loader": lambda: bench_loader(setting),
        "sample": lambda: bench_sample(network_of(cfg), setting),
        "encode": lambda: bench_encode(setting),
        "startup": lambda: bench_startup(setting),
    }[name]


def _train(cfg: DictConfig, setting: Setting, rate: float | None, trace: Path | None) -> Findings:
    import torch

    from sdscratch.bench.apart import bench_train_apart
    from sdscratch.bench.train import LARGE, bench_train, parameters_of
    from sdscratch.commands.quiet import quieten_libraries

    with torch.device("meta"):  # which takes no memory
        network = network_of(cfg)
    if not setting.on_cuda and parameters_of(network) > LARGE:
        if trace is not None:
            raise ConfigError(
                "trace=true: networks of this size step in processes of their own on a CPU, which leave none"
            )
        return bench_train_apart(network.config, parameters_of(network), setting, quieten_libraries)
    return bench_train(network_of(cfg), setting, rate, trace)

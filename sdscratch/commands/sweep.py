"""`-m`: a verb, run once for each combination of values, each in a folder of its own: runs/NAME/VALUES.

The same command again goes on with it: runs that are finished stay as they are, others are resumed, those that failed tried
again.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sdscratch.commands.finished import relearnt
from sdscratch.config import SweepJob, check_config, compose
from sdscratch.config import sweep as for_each_job
from sdscratch.console import warn
from sdscratch.errors import ConfigError, LostRankError, SdscratchError, StoppedError, of_the_machine
from sdscratch.files import write_json
from sdscratch.run_folder import RunFolder


def sweep(module: str, verb_config: str, overrides: list[str]) -> None:
    """Run every job, also after one that fails. Raises at the end, with all failures and the first one's exit code."""
    _check_name(overrides)
    failures: dict[str, SdscratchError] = {}
    jobs: list[SweepJob] = []

    def run(job: SweepJob) -> float | None:
        jobs.append(job)
        name = _values(job.swept) or f"job {len(jobs)}"
        try:
            return _run(module, compose(verb_config, job.overrides), job.swept)
        except StoppedError:
            raise
        except SdscratchError as error:
            failures[name] = error
        except Exception as error:
            if (refused := of_the_machine(error)) is None:
                traceback.print_exception(error)
                refused = LostRankError(f"{type(error).__name__}: {error}")
            failures[name] = refused
        warn(f"{name} failed: {failures[name]}")
        return None  # no number: a search counts the job as failed

    for_each_job(verb_config, overrides, run)
    if failures:
        said = [f"{name}: {str(failure).partition(chr(10))[0]}" for name, failure in failures.items()]
        headline = f"{len(failures)} of {len(jobs)} jobs failed; the same command again tries these once more:"
        summary = SdscratchError("\n  ".join([headline, *said]))
        summary.exit_code = next(iter(failures.values())).exit_code
        raise summary


def _check_name(overrides: list[str]) -> None:
    """Raise ConfigError where each job would bring a name, and so a folder, of its own."""
    named = any(re.match(r"\+*name=", word) for word in overrides)
    naming = next((word for word in overrides if re.match(r"(phase|experiment)=.*[,(]", word)), None)
    if naming and not named:
        raise ConfigError(f"{naming} gives the jobs different names: set name= for the folder that holds them all")


def _run(module: str, cfg: DictConfig, swept: Mapping[str, Any]) -> float | None:
    """One job, in its folder. Returns the objective of the run that it trains, None where it trains none."""
    named = "name" in cfg and not OmegaConf.is_missing(cfg, "name")
    if named and (values := _values({key: value for key, value in swept.items() if key != "name"})):
        cfg.name = f"{cfg.name}/{values}"
    check_config(cfg)
    if module != "train":
        import_module(f"sdscratch.commands.{module}").run(cfg)
        return None
    from sdscratch.commands.train import train

    folder = RunFolder(Path(cfg.paths.runs) / str(cfg.name))
    if folder.holds_a_run():
        cfg.resume_from = "auto"
    if folder.state().get("status") == "done" and (other := relearnt(folder, cfg)):
        raise ConfigError(
            f"{folder.path} was trained otherwise ({'; '.join(map(str, other[:3]))}): choose another name= for this sweep"
        )
    write_json(folder.path / "sweep.json", {key: value for key, value in swept.items() if key != "name"})
    return train(cfg).objective().get("value")


def _values(swept: Mapping[str, Any]) -> str:
    """The folder of a job, such as `lr-1e-05_min_snr_gamma-3`: keys by their last part where that tells them apart.

    It holds nothing that Hydra's grammar or a shell would take for more than a name.
    """
    last = [key.rpartition(".")[2] for key in swept]
    short = {key: name if last.count(name) == 1 else key for key, name in zip(swept, last, strict=True)}
    return "_".join(_safe(f"{short[key].replace('/', '.')}-{swept[key]}") for key in sorted(swept))


def _safe(text: str) -> str:
    """Text as a part of a folder's name; what had to be replaced stays distinct by a few digits of its hash."""
    safe = re.sub(r"[^\w.+-]+", "-", text)[:60]
    return safe if safe == text else f"{safe.strip('-')}-{sha256(text.encode()).hexdigest()[:6]}"

"""`sdscratch checkpoints RUN`: which there are, whether they are intact, and which may go."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omegaconf import DictConfig, OmegaConf

from sdscratch.checkpoint_file import Checkpoint, Retention, best_first
from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.config import load_config
from sdscratch.config.words import did_you_mean
from sdscratch.errors import ConfigError, RunFolderError, check_whole
from sdscratch.run_folder import RunFolder

ACTIONS = ("list", "verify", "prune")
KEEP = {"keep_last": 1, "keep_every": 1, "keep_best": 0}
"""What `prune` takes, with the least value of each."""


def run(run: str, words: list[str]) -> None:
    """List them; or, by the first of `words`: `verify` reads them whole, `prune keep_last=1` removes those not kept."""
    folder = RunFolder(run)
    if not folder.holds_a_run():
        raise RunFolderError(f"{run} holds no run: expected a folder such as runs/NAME{did_you_mean_run(run)}")
    action, rest = (words[0], words[1:]) if words else ("list", [])
    if action == "prune":
        prune(folder, rest)
    elif action not in ("list", "verify"):
        raise ConfigError(
            f"checkpoints RUN {action} is unknown; expected verify or prune{did_you_mean(action, ACTIONS)}"
        )
    elif rest:
        raise ConfigError(f"checkpoints RUN {action} takes nothing more, but {' '.join(rest)} was given")
    elif action == "verify":
        verify(folder)
    else:
        show(folder, Checkpoint.has_its_size, "complete")
        print(f"`sdscratch checkpoints {run} verify` reads them whole")


def show(folder: RunFolder, is_valid: Callable[[Checkpoint], bool], valid: str) -> list[Checkpoint]:
    """Print a table, oldest first, with what `is_valid` says of each. Returns those that are not."""
    known = folder.checkpoints()
    best = next(iter(best_first(known)), None)
    print(f"{'step':>10} {'samples':>12} {'size':>10} {'val loss':>10}")
    bad = []
    for checkpoint in known:
        loss = "-" if checkpoint.val_loss is None else f"{checkpoint.val_loss:.4g}"
        state = valid if is_valid(checkpoint) else "damaged"
        if state == "damaged":
            if not checkpoint.sidecar.exists():
                continue  # the run has gone on meanwhile, and removed it
            bad.append(checkpoint)
        mark = "  best" if checkpoint == best else ""
        numbers = f"{checkpoint.step:>10} {checkpoint.samples_seen:>12} {_size(checkpoint.size):>10} {loss:>10}"
        print(f"{numbers}  {state}{mark}", flush=True)
    names = {checkpoint.path for checkpoint in known}
    if folder.status() != "running":  # else one may just be saved, or removed
        for path in sorted(set(folder.checkpoint_folder.glob("step_*.ckpt")) - names):
            print(f"{path.name}: not valid, for it has no side-car that fits: the save was never finished")
    return bad


def verify(folder: RunFolder) -> None:
    """Read every byte. Raises RunFolderError where one differs from what was written."""
    if bad := show(folder, Checkpoint.is_intact, "intact"):
        names = ", ".join(checkpoint.path.name for checkpoint in bad)
        raise RunFolderError(
            f"{len(bad)} of {len(folder.checkpoints())} checkpoints in {folder.path} are damaged: {names}"
        )


def prune(folder: RunFolder, words: list[str]) -> None:
    """Remove what is not kept, damaged ones beyond the newest intact one, and halves; never while the run trains."""
    retention = _retention(folder, words)
    folder.lock()
    try:
        newest = folder.newest_intact_checkpoint()
        known = {checkpoint.path: checkpoint for checkpoint in folder.checkpoints()}
        removed = folder.prune_checkpoints(newest.step if newest else 0, retention)
    finally:
        folder.unlock()
    gone = [known[path] for path in sorted(removed) if path in known]
    for checkpoint in gone:
        print(f"removed {checkpoint.path.name}")
    print(f"{len(gone)} removed, {_size(sum(c.size for c in gone))}; {len(folder.checkpoints())} kept")


def _retention(folder: RunFolder, words: list[str]) -> Retention:
    """As the words say, and where they say nothing as the run was configured."""
    configured = load_config(folder.config_file) if folder.config_file.is_file() else OmegaConf.create()
    settings = OmegaConf.select(configured, "callbacks.checkpoints") or {}
    kept: dict[str, Any] = {name: settings[name] for name in KEEP if name in settings}
    for word in words:
        name, equals, _ = word.partition("=")
        if not equals or name not in KEEP:
            raise ConfigError(f"{word}: prune takes {', '.join(f'{key}=N' for key in KEEP)}{did_you_mean(name, KEEP)}")
        value = OmegaConf.from_dotlist([word])
        assert isinstance(value, DictConfig)
        kept[name] = value[name]
    for name, value in kept.items():
        if not (name == "keep_every" and value is None):
            check_whole(name, value, KEEP[name])
    return Retention(**{name.removeprefix("keep_"): value for name, value in kept.items()})


def _size(number: float) -> str:
    """Bytes as people read them."""
    power = 0
    while number >= 1000 and power < 3:
        number, power = number / 1000, power + 1
    return f"{number:.{min(power, 1)}f} {('B', 'kB', 'MB', 'GB')[power]}"

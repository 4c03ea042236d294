"""Find conf/, compose a verb's configuration from it, and say in one screen why that failed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

from hydra import initialize_config_dir
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict
from omegaconf.errors import OmegaConfBaseException

import sdscratch
from sdscratch.config.checking import HEADLINE, object_problems
from sdscratch.config.declared import dotted_keys, plain_problems
from sdscratch.config.explaining import Group, explain
from sdscratch.config.words import escape_interpolations, screen, shortened
from sdscratch.errors import CannotWriteError, ConfigError, SdscratchError, StoppedError

DELTAS = ("phase", "experiment", "debug", "sweep", "local")
"""Groups whose files change keys but declare none, so that a misspelt key in them is an error."""


def config_dir() -> Path:
    """The absolute path of conf/: inside the package in a wheel, beside it in a checkout or an editable install."""
    package = Path(sdscratch.__file__).resolve().parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise ConfigError(f"conf/ is neither in {package} nor beside it; install sdscratch again")


def compose(verb_config: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration that a command would get: `compose("train", ["experiment=tiny", "optimizer.lr=2.0e-4"])`.

    verb_config: path of a primary config below conf/, without .yaml. Raises ConfigError where Hydra cannot compose it,
    or where a key outside the objects is not declared by the primary config and its groups. Changes no directory,
    writes nothing, and may be called from anywhere, from inside a Hydra application too.
    """
    overrides = list(overrides)
    with _hydra(verb_config) as hydra, _readable_errors(hydra, verb_config, overrides):
        cfg, declared = _load(hydra.config_loader, verb_config, overrides)
    with open_dict(cfg):
        del cfg["hydra"]
    if problems := plain_problems(cfg, declared):
        raise ConfigError(screen(HEADLINE, [*problems, *object_problems(cfg)]))
    return cfg


class SweepJob(NamedTuple):
    """One run of a sweep. overrides: what its configuration is composed with. swept: those of them that jobs differ in."""

    overrides: list[str]
    swept: dict[str, Any]


def sweep(verb_config: str, overrides: Sequence[str], run: Callable[[SweepJob], float | None]) -> None:
    """Call `run` once for each combination of the values listed, by Hydra's sweeper and launcher (`-m`).

    What it returns is the sweeper's objective. A StoppedError ends the sweep; after other errors it goes on, if its sweeper
    does, and they are raised at its end, unless `run` keeps an account of them itself.
    """

    def job(_: DictConfig) -> float | None:
        chosen = HydraConfig.get().overrides
        words = [*chosen.hydra, *chosen.task]
        fixed = {override.key_or_group for override in _parsed(overrides) if not override.is_sweep_override()}
        varied = {o.key_or_group: o.value() for o in _parsed(chosen.task) if o.key_or_group not in fixed}
        try:
            return run(SweepJob(words, varied))
        except StoppedError as error:
            raise _Stop(error) from error

    overrides = [*overrides, "hydra.mode=MULTIRUN"]
    with _hydra(verb_config) as hydra:
        with _readable_errors(hydra, verb_config, overrides):
            cfg = hydra.compose_config(verb_config, overrides, run_mode=RunMode.MULTIRUN)
        _make_writable(Path(cfg.hydra.sweep.dir))
        try:
            hydra.multirun(verb_config, task_function=job, overrides=overrides)
        except _Stop as stop:
            raise stop.error from None
        except (HydraException, OmegaConfBaseException) as error:  # others come from the runs themselves
            raise ConfigError(shortened(_explain(error, hydra, verb_config, overrides))) from error


def _make_writable(folder: Path) -> None:
    """For what a sweeper leaves there, such as a study's data base. Raises CannotWriteError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        TemporaryFile(dir=folder).close()
    except OSError as error:
        raise CannotWriteError(f"cannot write into {folder}: {error.strerror or error}") from error


class _Stop(BaseException):
    """Takes a StoppedError through Hydra, which would count it as one job's failure and start the next."""

    def __init__(self, error: StoppedError) -> None:
        super().__init__()
        self.error = error


def _parsed(overrides: Sequence[str]) -> list[Any]:
    return OverridesParser.create().parse_overrides(list(overrides))


def config_groups(verb_config: str, overrides: Sequence[str] = ()) -> dict[str, Group]:
    """The config groups that a verb chooses from, by name."""
    with _hydra(verb_config) as hydra, _readable_errors(hydra, verb_config, list(overrides)):
        loader = hydra.config_loader
        return _groups(loader.load_configuration(verb_config, list(overrides), RunMode.RUN, from_shell=False), loader)


def config_files(verb_config: str, overrides: Sequence[str] = ()) -> list[tuple[str, str]]:
    """The files below conf/ that make a configuration, later ones winning, each with the key it goes to."""
    with _hydra(verb_config) as hydra, _readable_errors(hydra, verb_config, list(overrides)):
        files, _ = _defaults_list(hydra.config_loader, verb_config, list(overrides))
    return [(file.config_path, file.package or "_global_") for file in files]


def literal(text: str) -> str:
    """Text in quotes, so that as the value of an override it arrives as it stands: commas, brackets, quotes, `${`."""
    return QuotedString(escape_interpolations(text), Quote.single).with_quotes()


class _Repository(ConfigRepository):
    """For one verb: a key that its primary config states itself is a key, also where conf/ has a group of that name.

    So `sample` has its `model=runs/x` and `sampler=heun`, while `train` chooses from the groups model/ and sampler/.
    """

    def __init__(self, search_path: ConfigSearchPath, verb_config: str) -> None:
        super().__init__(search_path)
        self.verb_config = verb_config

    def group_exists(self, config_path: str) -> bool:
        return super().group_exists(config_path) and config_path not in self._keys

    @cached_property
    def _keys(self) -> set[Any]:
        primary = self.load_config(self.verb_config)
        return set(primary.config) if primary and isinstance(primary.config, DictConfig) else set()


@contextmanager
def _hydra(verb_config: str) -> Iterator[Any]:
    """A Hydra of our own over conf/; whatever was initialised before is put back."""
    before = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(config_dir()), job_name="sdscratch", version_base="1.3"):
            hydra: Any = GlobalHydra.instance().hydra
            hydra.config_loader.repository = _Repository(hydra.config_loader.get_search_path(), verb_config)
            yield hydra
    finally:
        GlobalHydra.instance().hydra = before


def _load(loader: Any, verb_config: str, overrides: list[str]) -> tuple[DictConfig, DictConfig]:
    """The configuration with Hydra's own part, and what its primary config and groups declare.

    Both from one reading of the files, which is what takes the time: by stepping into Hydra where it has read them.
    """
    declared, compose_files = DictConfig({}), loader._compose_config_from_defaults_list

    def compose_both(defaults: list[Any], repo: Any) -> DictConfig:
        nonlocal declared
        chosen = [file for file in defaults if not _is_hydras(str(file.config_path)) and not _is_delta(file)]
        cache = dict(repo.cache)
        for name in [f"config_path={file.config_path}" for file in chosen]:
            repo.cache[name] = deepcopy(cache[name])  # composing writes into what it reads
        declared = compose_files(chosen, repo)
        repo.cache = cache
        return compose_files(defaults, repo)

    loader._compose_config_from_defaults_list = compose_both
    try:
        return loader.load_configuration(verb_config, overrides, RunMode.RUN, from_shell=False), declared
    finally:
        loader._compose_config_from_defaults_list = compose_files


def _defaults_list(loader: Any, verb_config: str, overrides: list[str]) -> tuple[list[Any], Any]:
    """The files that make a configuration, without Hydra's own, and the repository that holds them, already read.

    By Hydra's private functions: it has no public way to compose a part of a defaults list.
    """
    parsed, repository = loader._parse_overrides_and_create_caching_repo(verb_config, overrides)
    found = create_defaults_list(repository, verb_config, parsed, prepend_hydra=True, skip_missing=False)
    return [file for file in found.defaults if not _is_hydras(str(file.config_path))], repository


def _is_delta(file: Any) -> bool:
    return not file.primary and not file.package and file.config_path.partition("/")[0] in DELTAS


def _is_hydras(name: str) -> bool:
    return name == "hydra" or name.startswith("hydra/")


def _groups(cfg: DictConfig, loader: Any) -> dict[str, Group]:
    choices = {str(name): option for name, option in cfg.hydra.runtime.choices.items() if not _is_hydras(str(name))}
    return {name: Group(choices[name], loader.get_group_options(name.partition("@")[0])) for name in sorted(choices)}


@contextmanager
def _readable_errors(hydra: Any, verb_config: str, overrides: list[str]) -> Iterator[None]:
    """Turn whatever Hydra raises while it composes into a ConfigError: it does nothing then but read configuration."""
    try:
        yield
    except SdscratchError:
        raise
    except Exception as error:
        raise ConfigError(shortened(_explain(error, hydra, verb_config, overrides))) from error


def _key(override: str) -> str:
    return override.partition("=")[0]


def _explain(error: Exception, hydra: Any, verb_config: str, overrides: list[str]) -> str:
    loader = hydra.config_loader
    try:
        cfg = loader.load_configuration(verb_config, [], RunMode.RUN, from_shell=False)
    except Exception:  # the files themselves are at fault: there is nothing to suggest
        return explain(error, overrides)
    groups = _groups(cfg, loader)
    with open_dict(cfg):
        del cfg["hydra"]

    def problems_of_adding(key: str) -> list[str]:
        forced = [word if word.startswith(("+", "~")) or _key(word) in groups else f"++{word}" for word in overrides]
        try:
            added, declared = _load(loader, verb_config, forced)
        except Exception:  # there is more to mend
            return [""]
        with open_dict(added):
            del added["hydra"]
        problems = [*plain_problems(added, declared), *object_problems(added)]
        named = [problem.partition(": ") for problem in problems]
        return [problem for name, _, problem in named if f"{key}.".startswith(f"{name}.")]  # of it, or of what it is in

    return explain(error, overrides, dotted_keys(cfg), groups, problems_of_adding)

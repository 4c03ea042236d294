"""`sdscratch resume RUN`: go on where a run stopped, with the configuration that it was started with."""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.commands.train import train, what_next
from sdscratch.config import check_config, load_config
from sdscratch.errors import ConfigError, RunFolderError
from sdscratch.run_folder import RunFolder


def run(run: str, overrides: list[str]) -> None:
    """Read the run's recipe, its configuration before interpolation, apply `key=value` overrides, train on."""
    folder = RunFolder(run)
    if not folder.recipe_file.is_file():
        raise RunFolderError(
            f"{run} holds no run: expected a folder with recipe.yaml, such as runs/NAME{did_you_mean_run(run)}"
        )
    recipe = load_config(folder.recipe_file)
    if "name" not in recipe or OmegaConf.select(recipe, "paths.runs") is None:
        raise RunFolderError(f"{folder.recipe_file} is not the recipe of a run: it has no name, or no paths.runs")
    cfg = recipe.copy()
    if (Path(cfg.paths.runs) / str(cfg.name)).resolve() != folder.path.resolve():
        cfg.paths.runs = str(_runs(folder.path.resolve(), str(cfg.name)))
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or OmegaConf.select(cfg, key, default=KeyError) is KeyError:
            raise ConfigError(f"{override}: expected key=value with a key of {folder.recipe_file}")
        if key in ("name", "paths", "paths.runs"):
            raise ConfigError(f"{override}: a run goes on in its own folder; `sdscratch train` starts another one")
        if key == "init_from":
            raise ConfigError(f"{override}: the run has its weights already; `sdscratch train` starts another one")
        _merge(cfg, override)
    cfg.resume_from = "auto"
    check_config(cfg, declared=recipe)
    what_next(train(cfg), cfg)


def _merge(cfg: DictConfig, override: str) -> None:
    """Raises ConfigError for what is no value, and for another option of a group, which a recipe knows nothing of."""
    key, _, value = override.partition("=")
    section = OmegaConf.select(cfg, key)
    try:
        cfg.merge_with_dotlist([override])
    except YAMLError as error:
        raise ConfigError(f"{override}: {value} is no value: {' '.join(str(error).split())}") from error
    if isinstance(section, DictConfig) and isinstance(OmegaConf.select(cfg, key), str):
        raise ConfigError(
            f"{override}: a run keeps its {key}, of which single keys can be set, as in {key}.KEY={value}. For another one, "
            "repeat the run's own command with it and resume_from=auto"
        )


def _runs(folder: Path, name: str) -> Path:
    """Where runs/ is now, if it has been moved with the run in it, or seen from another working directory."""
    parts = Path(name).parts
    if folder.parts[-len(parts) :] != parts:
        raise RunFolderError(f"{folder} was trained under the name {name}: give the folder that name again")
    return Path(*folder.parts[: -len(parts)])

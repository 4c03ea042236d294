"""`sdscratch sample compare=`: the same prompts and seeds under several models, weights or settings, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from PIL import Image

from sdscratch.commands.picture_files import PictureFolder, safe_name
from sdscratch.commands.sample_request import (
    SETTINGS,
    about,
    drawing_bar,
    initial_image,
    load,
    negatives_of,
    settings_of,
)
from sdscratch.config.words import did_you_mean
from sdscratch.data.grid import labelled_grid
from sdscratch.errors import ConfigError, DataError, check_choice
from sdscratch.run_folder import RunFolder

if TYPE_CHECKING:
    from sdscratch.pipeline import TextToImage

AXES = ("model", "weights", "negative_prompt", *SETTINGS)
MOST_PICTURES = 2000
SMALLEST_CELL, LARGEST_CELL = 128, 256  # pixels
Choice = dict[str, Any]  # a value for each axis


def compare(cfg: DictConfig, prompts: list[str], folder: PictureFolder) -> None:
    """Write a grid for each prompt: the last axis from left to right, the other one and the seeds from top to bottom."""
    axes = axes_of(cfg)
    choices = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    pictures = len(choices) * len(prompts) * cfg.num_per_prompt
    if pictures > MOST_PICTURES:
        raise ConfigError(f"compare={cfg.compare} would draw {pictures} pictures: expected at most {MOST_PICTURES}")
    drawn: dict[tuple[int, int], list[Image.Image]] = {}  # by numbers of prompt and choice, a picture for each seed
    made_by: dict[str, Any] = {}
    picture = initial_image(cfg)
    with drawing_bar() as progress:
        for number, choice, pipe in _with_their_models(cfg, choices):
            made_by = made_by or about(cfg, pipe)
            chosen = _configured(cfg, choice)
            negatives = negatives_of(chosen, len(prompts))
            for place, prompt in enumerate(prompts):
                drawn[place, number] = _draw(pipe, chosen, prompt, negatives[place], picture)
                progress(sum(map(len, drawn.values())), pictures)
    for place, prompt in enumerate(prompts):
        grid = _grid(cfg, axes, [drawn[place, number] for number in range(len(choices))], prompt)
        name = f"{safe_name(prompt)}_by_{'_and_'.join(axes)}"
        own = {"prompt": prompt, "seed": cfg.seed, "num_per_prompt": cfg.num_per_prompt, "compare": axes}
        print(folder.write(name, grid, {key: value for key, value in made_by.items() if key not in axes} | own))


def axes_of(cfg: DictConfig) -> dict[str, list[Any]]:
    """One or two axes with their values, words for models spelled out. Raises ConfigError, DataError."""
    given = OmegaConf.to_container(cfg.compare) if isinstance(cfg.compare, DictConfig) else None
    if not isinstance(given, Mapping) or not 1 <= len(given) <= 2:
        raise ConfigError(
            f"compare={cfg.compare}: expected one axis or two with their values, such as {{guidance_scale: [1, 4, 7.5]}}"
        )
    axes = {}
    for axis, values in given.items():
        if axis not in AXES:
            raise ConfigError(
                f"compare names {axis!r}{did_you_mean(str(axis), AXES) or '; expected ' + ', '.join(AXES)}"
            )
        if axis == "model" and isinstance(values, str):
            values = _models(values, str(cfg.model))
        if not isinstance(values, list) or not values:
            raise ConfigError(f"compare={{{axis}: {values}}}: expected a list of values")
        axes[str(axis)] = values
    for weights in axes.get("weights", []):
        check_choice("weights", weights, ("ema", "raw"))
    return axes


def _models(word: str, model: str) -> list[str]:
    """`checkpoints` of a run, or the finished `phases` of a curriculum that have learnt to draw."""
    if word == "checkpoints":
        found = [str(checkpoint.path) for checkpoint in RunFolder(model).checkpoints()]
        wanted = "a run with checkpoints"
    elif word == "phases":
        from sdscratch.training.curriculum import CurriculumFolder

        runs = [RunFolder(str(entry.run)) for entry in CurriculumFolder(Path(model)).entries().values() if entry.run]
        found = [str(run.path) for run in runs if (run.model_folder / "unet").is_dir()]
        wanted = "a curriculum with a finished phase of a UNet"
    else:
        raise ConfigError(f"compare={{model: {word}}}: expected a list of models, or checkpoints, or phases")
    if not found:
        raise DataError(f"compare={{model: {word}}} needs {wanted} as model=; found {model}")
    return found


def _with_their_models(cfg: DictConfig, choices: list[Choice]) -> Iterator[tuple[int, Choice, TextToImage]]:
    """Numbers, choices and pipelines, each model loaded once. All are found before the first is loaded."""
    from sdscratch.interop.model_source import require_model

    models = list(dict.fromkeys(str(choice.get("model", cfg.model)) for choice in choices))
    for model in models[1:]:
        require_model(model)
    for model in models:
        pipe = load(cfg, model)
        mine = [(i, choice) for i, choice in enumerate(choices) if str(choice.get("model", cfg.model)) == model]
        for _, choice in mine:
            pipe.defaults.settings(**settings_of(_configured(cfg, choice)))
        for i, choice in mine:
            yield i, choice, pipe


def _configured(cfg: DictConfig, choice: Choice) -> DictConfig:
    configured = cfg.copy()
    for axis, value in choice.items():
        configured[axis] = value
    return configured


def _draw(
    pipe: TextToImage, cfg: DictConfig, prompt: str, negative: str, picture: Image.Image | None
) -> list[Image.Image]:
    """A picture for each seed."""
    return pipe(
        [prompt] * cfg.num_per_prompt,
        negative,
        seed=cfg.seed,
        weights=cfg.weights,
        init_image=picture,
        batch_size=cfg.batch_size,
        **settings_of(cfg),
    )


def _grid(cfg: DictConfig, axes: dict[str, list[Any]], cells: list[list[Image.Image]], prompt: str) -> Image.Image:
    """cells: in the order of the choices, a picture for each seed."""
    *outer, (across, values) = axes.items()
    groups = [f"{axis} {_named(axis, value)}, " for axis, group in outer for value in group] or [""]
    rows, labels = [], []
    for place, group in enumerate(groups):
        of_group = cells[place * len(values) : (place + 1) * len(values)]
        for i in range(cfg.num_per_prompt):
            rows.append([pictures[i] for pictures in of_group])
            labels.append(f"{group if i == 0 else ''}seed {cfg.seed + i}")
    cell = min(max(picture.width for row in rows for picture in row), LARGEST_CELL)
    across_labels = [f"{across} {_named(across, value)}" for value in values]
    title = prompt if "model" in axes else f"{prompt} ({cfg.model})"
    return labelled_grid(rows, labels, across_labels, title, max(cell, SMALLEST_CELL))


def _named(axis: str, value: Any) -> str:
    """A checkpoint by run and step; everything else as it stands."""
    path = Path(str(value))
    is_checkpoint = axis == "model" and path.suffix == ".ckpt" and path.stem.startswith("step_")
    return f"{path.parents[1].name} step {int(path.stem[5:])}" if is_checkpoint else str(value)

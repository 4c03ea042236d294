"""What `sdscratch sample` was asked for, read from its configuration."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from sdscratch.commands.data_paths import optional, required
from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.data.images import open_image
from sdscratch.errors import ConfigError, DataError, check_whole

if TYPE_CHECKING:
    from sdscratch.pipeline import TextToImage

SETTINGS = (
    "size",
    "height",
    "width",
    "num_inference_steps",
    "guidance_scale",
    "guidance_rescale",
    "guidance_interval",
    "sampler",
    "eta",
    "strength",
)
"""Those of SamplingSettings, which it takes seconds to import."""

MOST_PER_PROMPT = 10_000


def check_request(cfg: DictConfig) -> None:
    """Raise ConfigError for what is wrong before any model is looked at."""
    check_whole("num_per_prompt", cfg.num_per_prompt, most=MOST_PER_PROMPT)
    if cfg.interactive and cfg.compare is not None:
        raise ConfigError("interactive=true and compare= exclude each other: set one")
    if cfg.interactive and not (cfg.prompt is optional(cfg, "batch") is None):
        raise ConfigError("interactive=true asks for prompts itself: leave out prompt and batch")


def prompts_of(cfg: DictConfig) -> list[str]:
    """Of `prompt`, one or several, or of the lines of the file `batch`. Raises ConfigError, DataError."""
    batch = optional(cfg, "batch")
    if (cfg.prompt is None) == (batch is None):
        found = "there is no prompt" if cfg.prompt is None else "there are prompt and batch"
        raise ConfigError(
            f'{found}: expected prompt="a text", prompt=[a text,another], or batch=FILE, with one in each line'
        )
    if batch is None:
        return [str(prompt) for prompt in (cfg.prompt if isinstance(cfg.prompt, ListConfig) else [cfg.prompt])]
    try:
        lines = Path(batch).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(
            f"batch={batch} cannot be read ({reason}): expected a text file with a prompt in each line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def negatives_of(cfg: DictConfig, count: int) -> list[str]:
    """As many as there are prompts, of one for all, or one each. Raises ConfigError."""
    given = cfg.negative_prompt
    if not isinstance(given, ListConfig):
        return [optional(cfg, "negative_prompt") or ""] * count
    if len(given) != count:
        raise ConfigError(f"{len(given)} negative prompts for {count} prompts: give one, or one each")
    return [str(negative) for negative in given]


def settings_of(cfg: DictConfig) -> dict[str, Any]:
    """Plain values for TextToImage; null stays None."""
    plain: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [*SETTINGS]))
    return dict(plain)


def initial_image(cfg: DictConfig) -> Image.Image | None:
    """The picture in the file init_image. Raises DataError where there is none."""
    if (path := optional(cfg, "init_image")) is None:
        return None
    try:
        if not Path(path).is_file():
            raise DataError("there is no such file")
        return open_image(Path(path).read_bytes())
    except (OSError, DataError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"init_image={path}: {reason}. Expected a JPEG, PNG or WebP picture") from error


def load(cfg: DictConfig, model: str | None = None) -> TextToImage:
    """The pipeline of cfg.model, or of another model. Raises DataError, ConfigError."""
    from sdscratch.pipeline import TextToImage  # takes seconds, which a refusal should not

    name = required(cfg, "model", "a run, a model folder, or a file of weights") if model is None else str(model)
    try:
        return TextToImage.from_pretrained(name, cfg.device, str(cfg.dtype), bool(cfg.tiling))
    except DataError as error:
        raise DataError(f"{error}{'' if Path(name).exists() else did_you_mean_run(name)}") from error


def about(cfg: DictConfig, pipe: TextToImage) -> dict[str, Any]:
    """All that the pictures of this configuration have in common, by the names under which it can be asked for again."""
    known = {"model": cfg.model, **pipe.defaults.settings(**settings_of(cfg)).as_dict()}
    known |= {name: cfg[name] for name in ("weights", "dtype", "negative_prompt")}
    known["init_image"] = optional(cfg, "init_image")
    if known["init_image"] is None:
        del known["strength"]
    return {name: value for name, value in known.items() if value is not None}


@contextmanager
def drawing_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr where that is a terminal, and warnings in a line each."""
    console = Console(stderr=True)
    bar = Progress(console=console, disable=not sys.stderr.isatty(), redirect_stdout=sys.stdout.isatty())
    with bar, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        task = bar.add_task("sampling", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

"""`sdscratch sample`: pictures from prompts."""

from __future__ import annotations

import io
import re
import sys
import tempfile
import warnings
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress

from sdscratch import __version__
from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.data.grid import captioned_grid
from sdscratch.errors import CannotWriteError, ConfigError, DataError, check_whole
from sdscratch.files import write_atomically

if TYPE_CHECKING:
    from sdscratch.pipeline import TextToImage

WITH_DEFAULTS = ("num_inference_steps", "guidance_scale", "sampler", "size")  # null: as the model says
AS_GIVEN = ("negative_prompt", "guidance_rescale", "eta", "weights")
COLUMNS, MOST_SHOWN = 6, 120  # of the sheet
MOST_PER_PROMPT = 10_000
LONGEST_NAME = 120  # bytes of the prompt in a file's name; file systems allow 255 in all


def run(cfg: DictConfig) -> None:
    """Write the PNGs, each with all that it takes to draw it again in its text, and a sheet of them where they are several."""
    check_whole("num_per_prompt", cfg.num_per_prompt, most=MOST_PER_PROMPT)
    prompts = [prompt for prompt in _prompts(cfg) for _ in range(cfg.num_per_prompt)]
    out = _writable(Path(cfg.out))
    pipe = _pipeline(str(cfg.model), cfg.device)
    chosen = {name: getattr(pipe.defaults, name) if cfg[name] is None else cfg[name] for name in WITH_DEFAULTS}
    chosen |= {name: cfg[name] for name in AS_GIVEN}
    made_by = {"model": cfg.model, **chosen, "Software": f"sdscratch {__version__}"}

    def write(i: int, image: Image.Image) -> None:
        about = {"prompt": prompts[i], "seed": cfg.seed + i, **made_by}
        print(_write(out, f"{_safe(prompts[i])}_{cfg.seed + i}", _png(image, about)), flush=True)

    console = Console(stderr=True)
    bar = Progress(console=console, disable=not sys.stderr.isatty(), redirect_stdout=sys.stdout.isatty())
    with bar, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        task = bar.add_task("sampling", total=None)
        images = pipe(
            prompts,
            seed=cfg.seed,
            batch_size=cfg.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            ready=write,
            **chosen,
        )
    if len(images) > 1:
        title = f"{cfg.model}: {cfg.weights} weights, {chosen['num_inference_steps']} steps, seeds from {cfg.seed} on"
        sheet = captioned_grid(images[:MOST_SHOWN], prompts[:MOST_SHOWN], COLUMNS, title)
        name = f"{_safe(prompts[0])}_{cfg.seed}-{cfg.seed + len(images) - 1}"
        print(f"all of them: {_write(out, name, _png(sheet, made_by))}")


def _prompts(cfg: DictConfig) -> list[str]:
    """Of `prompt`, one or several, or of the lines of the file `batch`. Raises ConfigError, DataError."""
    if (cfg.prompt is None) == (cfg.batch is None):
        found = "there is no prompt" if cfg.prompt is None else "there are prompt and batch"
        raise ConfigError(
            f'{found}: expected prompt="a text", prompt=[a text,another], or batch=FILE, with one in each line'
        )
    if cfg.batch is None:
        return [str(prompt) for prompt in (cfg.prompt if isinstance(cfg.prompt, ListConfig) else [cfg.prompt])]
    try:
        lines = Path(cfg.batch).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise DataError(
            f"batch={cfg.batch} cannot be read ({reason}): expected a text file with a prompt in each line"
        ) from error
    return [line.strip() for line in lines if line.strip()]


def _pipeline(model: str, device: str | None) -> TextToImage:
    from sdscratch.pipeline import TextToImage  # takes seconds, which a refusal should not

    try:
        return TextToImage.from_pretrained(model, device)
    except DataError as error:
        raise DataError(f"{error}{'' if Path(model).exists() else did_you_mean_run(model)}") from error


def _writable(folder: Path) -> Path:
    """The folder, made, and found out now rather than after the last step to take files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise CannotWriteError(f"cannot write into {folder}: {error.strerror}. Choose another out=") from error


def _png(image: Image.Image, about: Mapping[str, Any]) -> bytes:
    text, file = PngInfo(), io.BytesIO()
    for name, value in about.items():
        text.add_text(name, str(value))
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


def _write(folder: Path, name: str, content: bytes) -> Path:
    """Write NAME.png, or NAME_2.png where another picture has that name; what is there already is left alone."""
    for number in count(1):
        path = folder / (f"{name}.png" if number == 1 else f"{name}_{number}.png")
        if not path.exists():
            write_atomically(path, lambda file: file.write(content))
        if path.read_bytes() == content:
            break
    return path


def _safe(prompt: str) -> str:
    """The prompt as a part of a file's name, on any system."""
    words = re.sub(r"\W+", "_", prompt.lower()).encode()[:LONGEST_NAME].decode(errors="ignore")
    return words.strip("_") or "picture"

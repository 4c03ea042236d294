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
from typing import Any

from omegaconf import DictConfig
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress

from sdscratch import __version__
from sdscratch.errors import CannotWriteError, check_whole
from sdscratch.files import write_atomically
from sdscratch.pipeline import TextToImage

WITH_DEFAULTS = ("num_inference_steps", "guidance_scale", "sampler", "size")  # null: as the model says
AS_GIVEN = ("negative_prompt", "guidance_rescale", "eta", "weights")
MOST_PICTURES = 10_000  # all are drawn before the first is written
LONGEST_NAME = 120  # bytes of the prompt in a file's name; file systems allow 255 in all


def run(cfg: DictConfig) -> None:
    """Write `num_per_prompt` PNGs, each with all that it takes to draw it again in its text."""
    check_whole("num_per_prompt", cfg.num_per_prompt, most=MOST_PICTURES)
    prompt = str(cfg.prompt)
    out = _writable(Path(cfg.out))
    pipe = TextToImage.from_pretrained(cfg.model, cfg.device)
    chosen = {name: getattr(pipe.defaults, name) if cfg[name] is None else cfg[name] for name in WITH_DEFAULTS}
    chosen |= {name: cfg[name] for name in AS_GIVEN}
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar, warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: print(f"warning: {message}", file=sys.stderr)
        task = bar.add_task("sampling", total=None)
        images = pipe(
            [prompt] * cfg.num_per_prompt,
            seed=cfg.seed,
            batch_size=cfg.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **chosen,
        )
    for seed, image in enumerate(images, cfg.seed):
        about = {"prompt": prompt, "seed": seed, "model": cfg.model, **chosen, "Software": f"sdscratch {__version__}"}
        print(_write(out, f"{_safe(prompt)}_{seed}", _png(image, about)))


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

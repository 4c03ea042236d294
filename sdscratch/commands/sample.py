"""`sdscratch sample`: pictures from prompts."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from PIL.PngImagePlugin import PngInfo
from rich.console import Console
from rich.progress import Progress

from sdscratch.errors import CannotWriteError, ConfigError
from sdscratch.pipeline import TextToImage


def run(cfg: DictConfig) -> None:
    """Write one PNG per prompt and number, with its parameters in the PNG's text."""
    given = list(cfg.prompt) if isinstance(cfg.prompt, ListConfig) else [cfg.prompt]
    prompts = [str(prompt) for prompt in given for _ in range(cfg.num_per_prompt)]
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise ConfigError('the prompt is empty: expected text, as in prompt="a red circle"')
    pipe = TextToImage.from_pretrained(cfg.model, cfg.device)
    chosen = {
        "negative_prompt": cfg.negative_prompt,
        "num_inference_steps": cfg.num_inference_steps or pipe.defaults.num_inference_steps,
        "guidance_scale": pipe.defaults.guidance_scale if cfg.guidance_scale is None else cfg.guidance_scale,
        "guidance_rescale": cfg.guidance_rescale,
        "sampler": cfg.sampler or pipe.defaults.sampler,
        "eta": cfg.eta,
        "size": cfg.size or pipe.defaults.size,
        "weights": cfg.weights,
    }
    if chosen["guidance_scale"] != 1 and pipe.defaults.caption_dropout == 0:
        print(
            "warning: this model was trained without caption dropout, so guidance has nothing to go by", file=sys.stderr
        )
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("sampling", total=None)
        images = pipe(
            prompts,
            seed=cfg.seed,
            batch_size=cfg.batch_size,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **chosen,
        )
    try:
        Path(cfg.out).mkdir(parents=True, exist_ok=True)
        for i, (prompt, image) in enumerate(zip(prompts, images, strict=True)):
            about = PngInfo()
            for name, value in {"prompt": prompt, "seed": cfg.seed + i, "model": cfg.model, **chosen}.items():
                about.add_itxt(name, str(value))
            path = Path(cfg.out) / f"{_safe(prompt)}_{cfg.seed + i}.png"
            image.save(path, pnginfo=about)
            print(path)
    except OSError as error:
        raise CannotWriteError(f"cannot write into {cfg.out}: {error.strerror or error}") from error


def _safe(prompt: str) -> str:
    return re.sub(r"\W+", "_", prompt.lower()).strip("_")[:60] or "picture"

"""A job's pictures, drawn: what happens in the thread that owns the device."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

from torch import Tensor

from sdscratch import __version__
from sdscratch.serving.jobs import Job
from sdscratch.serving.models import Served
from sdscratch.serving.pictures import glance_uri, png_uri
from sdscratch.serving.schemas import Parameters

BETWEEN_PREVIEWS = 0.1  # seconds: nobody sees more of them


class Unwanted(Exception):
    """Nobody waits for the pictures any more."""


def draw(served: Served, job: Job, report: Callable[[int, str], None]) -> tuple[list[str], list[str]]:
    """Data URIs of the job's pictures, and notes for whoever asked.

    report: called after each step with how many are done, and a preview or "".
    Raises Unwanted after the step during which the job was cancelled.
    """
    wanted, last_preview = job.parameters, 0.0

    def after_step(step: int, steps: int, estimate: Tensor) -> None:
        nonlocal last_preview
        if job.unwanted.is_set():
            raise Unwanted
        preview = ""
        if job.watchers and time.monotonic() - last_preview > BETWEEN_PREVIEWS:
            last_preview = time.monotonic()
            preview = glance_uri(served.preview(estimate))
        report(step, preview)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", UserWarning)
        images = served.pipe(
            [wanted.prompt] * wanted.n,
            negative_prompt=wanted.negative_prompt,
            num_inference_steps=wanted.steps,
            guidance_scale=wanted.cfg_scale,
            guidance_rescale=wanted.guidance_rescale,
            sampler=wanted.sampler,
            seed=wanted.seed,
            height=wanted.height,
            width=wanted.width,
            weights=wanted.weights,
            batch_size=wanted.n,
            on_step=after_step,
        )
    pictures = [png_uri(image, _about(wanted, i, served.entry.id)) for i, image in enumerate(images)]
    return pictures, [*_unread(served, wanted), *(str(warning.message) for warning in warned)]


def _unread(served: Served, wanted: Parameters) -> list[str]:
    """A note for each text that is longer than the text encoder reads."""
    tokenizer = served.pipe.encoders.text.tokenizer
    most = tokenizer.model_max_length
    texts = {"prompt": wanted.prompt, "negative prompt": wanted.negative_prompt}
    lengths = {name: len(tokenizer(text, verbose=False).input_ids) for name, text in texts.items()}
    return [
        f"the {name} has {length} tokens, of which the model reads {most}: its end counts for nothing"
        for name, length in lengths.items()
        if length > most
    ]


def _about(wanted: Parameters, number: int, model: str) -> dict[str, object]:
    """What the file says of itself, in the words of `sdscratch sample`."""
    return {
        "prompt": wanted.prompt,
        "seed": wanted.seed + number,
        "model": model,
        "num_inference_steps": wanted.steps,
        "guidance_scale": wanted.cfg_scale,
        "sampler": wanted.sampler,
        "height": wanted.height,
        "width": wanted.width,
        "negative_prompt": wanted.negative_prompt,
        "guidance_rescale": wanted.guidance_rescale,
        "weights": wanted.weights,
        "Software": f"sdscratch {__version__}",
    }

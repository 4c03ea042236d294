"""What a server lets itself be asked for, decided before anything is queued."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Any

from sdscratch.errors import check_number, check_whole
from sdscratch.pipeline import SamplingDefaults, Weights
from sdscratch.serving.problems import SEE_RANGES, Problem
from sdscratch.serving.schemas import (
    LARGEST_SEED,
    MAX_COUNT,
    MAX_GUIDANCE,
    MAX_SIDE,
    MAX_STEPS,
    MAX_TEXT,
    Parameters,
    Range,
    Size,
    Wish,
)

SHAPES = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16))


@dataclass(frozen=True)
class Limits:
    """max_cost: of width x height x steps x n, in pixels. max_prompt: characters. read_seconds: for a request to arrive.

    Raises ConfigError for impossible ones.
    """

    max_steps: int = 150
    max_guidance: float = 30.0
    max_side: int = 1024
    max_n: int = 8
    max_cost: int = 512 * 512 * 50 * 8
    max_prompt: int = 2000
    read_seconds: float = 10.0

    def __post_init__(self) -> None:
        check_whole("limits.max_steps", self.max_steps, most=MAX_STEPS)
        check_number("limits.max_guidance", self.max_guidance, 1, MAX_GUIDANCE)
        check_number("limits.read_seconds", self.read_seconds, 0.1, 3600)
        check_whole("limits.max_side", self.max_side, 16, MAX_SIDE)  # no model has larger latents
        check_whole("limits.max_n", self.max_n, most=MAX_COUNT)
        check_whole("limits.max_cost", self.max_cost)
        check_whole("limits.max_prompt", self.max_prompt, most=MAX_TEXT)

    def ranges(self, factor: int) -> dict[str, Range]:
        """By field; `factor`: how many pixels one latent of the model spans."""
        side = Range(min=factor, max=self.max_side // factor * factor, step=factor)
        return {
            "prompt": Range(min=1, max=self.max_prompt),
            "negative_prompt": Range(min=0, max=self.max_prompt),
            "steps": Range(min=1, max=self.max_steps, step=1),
            "cfg_scale": Range(min=0, max=self.max_guidance, step=0.5),
            "guidance_rescale": Range(min=0, max=1, step=0.05),
            "seed": Range(min=0, max=LARGEST_SEED, step=1),
            "width": side,
            "height": side,
            "n": Range(min=1, max=self.max_n, step=1),
        }

    def sizes(self, size: int, factor: int) -> list[Size]:
        """Sizes to choose from, of about the area that the model was trained on."""
        found = {}
        for wide, high in SHAPES:
            unit = size / (wide * high) ** 0.5
            width, height = (max(1, round(unit * side / factor)) * factor for side in (wide, high))
            if max(width, height) <= self.max_side:
                found[width, height] = Size(width=width, height=height)
        return [*found.values()]

    def unasked(self, defaults: SamplingDefaults, factor: int, weights: Weights) -> dict[str, Any]:
        """What one gets who says nothing but a prompt: the model's own, as far as allowed. seed: None, for any."""
        side = max(1, min(defaults.size, self.max_side) // factor) * factor
        return {
            "negative_prompt": "",
            "steps": min(defaults.num_inference_steps, self.max_steps),
            "cfg_scale": min(defaults.guidance_scale, self.max_guidance),
            "guidance_rescale": 0.0,
            "sampler": defaults.sampler,
            "seed": None,
            "width": side,
            "height": side,
            "n": 1,
            "weights": weights,
        }

    def settle(self, wish: Wish, defaults: SamplingDefaults, factor: int, weights: list[Weights]) -> Parameters:
        """The wish with nothing left open. weights: those that there are, the usual one first. Raises Problem, 422."""
        said = {name: value for name, value in wish.model_dump().items() if value is not None}
        chosen = {**self.unasked(defaults, factor, weights[0]), "seed": secrets.randbelow(LARGEST_SEED + 1), **said}
        chosen |= {name: chosen[name].strip() for name in ("prompt", "negative_prompt")}
        wanted = Parameters(**chosen)
        self.check(wanted, factor, weights)
        return wanted

    def check(self, wanted: Parameters, factor: int, weights: list[Weights]) -> None:
        """Raise Problem, 422, for what a model of this factor and with these weights does not draw here."""
        if wanted.weights not in weights:
            raise Problem(422, "weights: this model has no raw ones", "weights", "ask for ema")
        for field, allowed in self.ranges(factor).items():
            value = getattr(wanted, field)
            size = len(value) if (is_text := isinstance(value, str)) else value
            if not allowed.min <= size <= allowed.max:
                found = f"of {size} characters" if is_text else f"{size:.15g}"
                error = f"{field} is {found}: expected {allowed.min:.15g} to {allowed.max:.15g}"
                raise Problem(422, error, field, SEE_RANGES)
        for field in ("width", "height"):
            if (side := getattr(wanted, field)) % factor:
                raise Problem(422, f"{field} is {side}: expected a multiple of {factor}", field, SEE_RANGES)
        cost = wanted.width * wanted.height * wanted.steps * wanted.n
        if cost > self.max_cost:
            error = f"width x height x steps x n is {cost}: expected at most {self.max_cost}"
            raise Problem(422, error, "steps", "ask for fewer steps or pictures, or smaller ones")

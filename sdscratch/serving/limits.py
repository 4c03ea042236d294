"""What a server lets itself be asked for, decided before anything is queued."""

from __future__ import annotations

import secrets
from dataclasses import dataclass

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
        check_whole("limits.max_side", self.max_side, most=MAX_SIDE)
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
        found = []
        for wide, high in SHAPES:
            unit = size / (wide * high) ** 0.5
            width, height = (max(1, round(unit * side / factor)) * factor for side in (wide, high))
            if max(width, height) <= self.max_side:
                found.append(Size(width=width, height=height))
        return found

    def settle(self, wish: Wish, defaults: SamplingDefaults, factor: int, weights: list[Weights]) -> Parameters:
        """The wish with nothing left open. weights: those that there are, the usual one first. Raises Problem, 422."""
        wanted = Parameters(
            prompt=wish.prompt.strip(),
            negative_prompt=wish.negative_prompt.strip(),
            steps=defaults.num_inference_steps if wish.steps is None else wish.steps,
            cfg_scale=defaults.guidance_scale if wish.cfg_scale is None else wish.cfg_scale,
            guidance_rescale=wish.guidance_rescale,
            sampler=wish.sampler or defaults.sampler,
            seed=secrets.randbelow(LARGEST_SEED + 1) if wish.seed is None else wish.seed,
            width=defaults.size if wish.width is None else wish.width,
            height=defaults.size if wish.height is None else wish.height,
            n=wish.n,
            weights=wish.weights or weights[0],
        )
        self._check(wanted, factor)
        if wanted.weights not in weights:
            raise Problem(422, "weights: this model has no raw ones", "weights", "ask for ema")
        return wanted

    def _check(self, wanted: Parameters, factor: int) -> None:
        for field, allowed in self.ranges(factor).items():
            value = getattr(wanted, field)
            value = len(value) if isinstance(value, str) else value
            if not allowed.min <= value <= allowed.max:
                raise Problem(
                    422, f"{field} is {value}: expected {allowed.min:g} to {allowed.max:g}", field, SEE_RANGES
                )
        for field in ("width", "height"):
            if (side := getattr(wanted, field)) % factor:
                raise Problem(422, f"{field} is {side}: expected a multiple of {factor}", field, SEE_RANGES)
        cost = wanted.width * wanted.height * wanted.steps * wanted.n
        if cost > self.max_cost:
            error = f"width x height x steps x n is {cost}: expected at most {self.max_cost}"
            raise Problem(422, error, "steps", "ask for fewer steps or pictures, or smaller ones")

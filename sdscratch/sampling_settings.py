"""What can be asked of pictures beside their prompts, and which of it a model brings along."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sdscratch.data import check_resolution
from sdscratch.diffusion import get_sampler
from sdscratch.errors import ConfigError, check_number, check_whole

LONGEST_TEXT = 10_000  # characters; a text encoder reads the first few hundred


@dataclass(frozen=True)
class SamplingSettings:
    """How pictures are drawn, whatever their prompts are. Raises ConfigError for what cannot be drawn.

    height, width: pixels, multiples of the VAE's factor. sampler: ddim, ddpm, euler, heun or dpmpp_2m. eta: in [0, 1], the
    fresh noise of ddim. guidance_scale: how hard prompts pull; 1 is the network's own answer, at half the cost.
    guidance_rescale: in [0, 1], against overexposure. guidance_interval: the noise levels (low, high] at which there is
    guidance, in Karras' sigma: 0 is a clean picture, Stable Diffusion begins at about 14; None means all.
    strength: in [0, 1], of how much of an initial picture is drawn anew: that share of the steps is taken, the last ones.
    """

    height: int
    width: int
    num_inference_steps: int
    guidance_scale: float
    sampler: str
    guidance_rescale: float = 0.0
    guidance_interval: Sequence[float] | None = None
    eta: float = 0.0
    strength: float = 0.8

    def __post_init__(self) -> None:
        for name, side in self.sides.items():
            check_whole(name, side)
        check_whole("num_inference_steps", self.num_inference_steps)
        check_number("guidance_scale", self.guidance_scale)
        check_number("guidance_rescale", self.guidance_rescale, 0, 1)
        check_number("eta", self.eta, 0, 1)
        check_number("strength", self.strength, 0, 1)
        get_sampler(self.sampler)
        if self.eta and self.sampler != "ddim":
            raise ConfigError(f"eta={self.eta} is for sampler=ddim; {self.sampler} has none")
        if self.guidance_interval is not None:
            _check_interval(self.guidance_interval)

    @property
    def sides(self) -> dict[str, int]:
        """Height and width by name; of a square, its size."""
        if self.height == self.width:
            return {"size": self.height}
        return {"height": self.height, "width": self.width}

    @property
    def steps_left_out(self) -> int:
        """How many steps at the noisy end an initial picture saves, as StableDiffusionImg2ImgPipeline counts them."""
        taken = int(self.num_inference_steps * self.strength)
        if taken < 1:
            raise ConfigError(
                f"strength={self.strength} of num_inference_steps={self.num_inference_steps} is no whole step: nothing would "
                f"be drawn. Set strength to {1 / self.num_inference_steps:.3g} or more, or take more steps"
            )
        return self.num_inference_steps - taken

    def check_factor(self, factor: int) -> None:
        """Raise ConfigError unless a VAE that shrinks by `factor` can decode pictures of these sides."""
        for name, side in self.sides.items():
            check_resolution(side, factor, name)

    def as_dict(self) -> dict[str, Any]:
        """Plain values by the names under which they can be asked for again."""
        known = asdict(self)
        return {**self.sides, **{name: value for name, value in known.items() if name not in ("height", "width")}}


@dataclass(frozen=True)
class SamplingDefaults:
    """What a model is sampled with when nothing else is asked for; its folder carries it along.

    size: pixels. caption_dropout: the share of captions that training dropped; at 0 guidance has nothing to go by.
    Raises ConfigError for what no model could be sampled with.
    """

    size: int
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = "ddim"
    caption_dropout: float = 0.1

    def __post_init__(self) -> None:
        self.settings()

    def settings(
        self, size: int | None = None, height: int | None = None, width: int | None = None, **asked: Any
    ) -> SamplingSettings:
        """What is asked for, completed with what the model brings along where it is None or not named.

        size: height and width of a square. Raises ConfigError for what cannot be drawn, TypeError for unknown names.
        """
        if size is not None and not (height is width is None):
            raise ConfigError(f"size={size} stands for height and width: give it, or them")
        side = self.size if size is None else size
        own = {name: getattr(self, name) for name in ("num_inference_steps", "guidance_scale", "sampler")}
        chosen = {name: value for name, value in asked.items() if value is not None}
        return SamplingSettings(
            height=side if height is None else height, width=side if width is None else width, **own | chosen
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


def texts_of(prompts: str | Sequence[str], negative_prompt: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Prompts and as many negative prompts, of which there may be one for all. Raises ConfigError for what is no text."""
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
    if not prompts:
        raise ConfigError("there is no prompt: expected at least one text")
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str) or not prompt.strip():
            raise ConfigError(f"prompt {number} of {len(prompts)} is {prompt!r}: expected some text")
    if len(negatives) != len(prompts):
        raise ConfigError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one each")
    if not all(isinstance(negative, str) for negative in negatives):
        raise ConfigError(f"the negative prompts are {negatives}: expected texts")
    for text in (*prompts, *negatives):
        if len(text) > LONGEST_TEXT:
            raise ConfigError(f"{text[:60]!r} goes on for {len(text)} characters: expected at most {LONGEST_TEXT}")
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise ConfigError(f"{text[:100]!r} holds half a character (a lone surrogate): expected Unicode text")
    return prompts, negatives


def _check_interval(interval: Sequence[float]) -> None:
    if isinstance(interval, str) or not isinstance(interval, Sequence) or len(interval) != 2:
        raise ConfigError(f"guidance_interval is {interval!r}: expected two noise levels, such as [0.3, 5]")
    for level in interval:
        check_number("guidance_interval", level, 0)
    if not interval[0] < interval[1]:
        raise ConfigError(f"guidance_interval is {list(interval)}: expected the lower noise level first")

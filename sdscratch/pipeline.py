"""Text to pictures: the public Python API.

pipe = TextToImage.from_pretrained("runs/quickstart")
pipe(["a red circle on the left on a white background"], seed=7)[0].save("circle.png")
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn

from sdscratch.data import check_resolution, to_pil
from sdscratch.diffusion import Denoiser, FlowSchedule, NoiseSchedule, PredictionType, ddim, get_sampler, guided
from sdscratch.errors import ConfigError, check_whole
from sdscratch.interop.diffusers_folder import find_model_folder, load_model_folder
from sdscratch.interop.model_file import ModelFile
from sdscratch.interop.raw_weights import raw_weights
from sdscratch.models.encoders import FrozenEncoders, downsampling_factor
from sdscratch.run_folder import RunFolder

Weights = Literal["ema", "raw"]
LARGEST_SEED = 2**63 - 1


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
        check_whole("size", self.size)
        check_whole("num_inference_steps", self.num_inference_steps)
        _check_number("guidance_scale", self.guidance_scale)
        get_sampler(self.sampler)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class TextToImage:
    """Prompts to pictures.

    unet: the averaged network, (latents, timesteps, encoder_hidden_states) -> prediction. load_raw: gives the one as
    training left it, if there is any.
    """

    def __init__(
        self,
        unet: nn.Module,
        encoders: FrozenEncoders,
        noise_schedule: NoiseSchedule | FlowSchedule,
        prediction_type: PredictionType,
        defaults: SamplingDefaults,
        load_raw: Callable[[], nn.Module] | None = None,
    ) -> None:
        self.unet, self.encoders = unet, encoders
        self.noise_schedule, self.prediction_type = noise_schedule, prediction_type
        self.defaults = defaults
        self._load_raw, self._raw = load_raw, cast(nn.Module | None, None)

    @classmethod
    def from_pretrained(cls, model: str | Path, device: str | None = None) -> TextToImage:
        """Read a finished run, a model folder (ours, or any StableDiffusionPipeline of SD 1.x kind), or a cached hub id.

        Or one file as `sdscratch import` takes them, of the averaged weights, with what is beside it and in the hub's cache.

        device: None means the GPU where there is one. Raises DataError when there is no model or it is damaged.
        """
        is_file = Path(model).is_file()
        found = ModelFile(Path(model)).load() if is_file else load_model_folder(find_model_folder(model))
        unet, encoders, noise_schedule, prediction_type, about = found
        known = {field.name for field in fields(SamplingDefaults)}
        given = {name: value for name, value in about.get("sampling", {}).items() if name in known}
        side = unet.config["sample_size"] or 64  # as diffusers takes null
        size = (side[0] if isinstance(side, list | tuple) else side) * downsampling_factor(encoders.vae)
        defaults = SamplingDefaults(**{"size": size, **given})
        run = RunFolder(model)
        load_raw = partial(raw_weights, unet, run) if run.checkpoints() else None
        pipe = cls(unet, encoders, noise_schedule, prediction_type, defaults, load_raw)
        return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> TextToImage:
        """Move all networks, in place. Raises ConfigError for a device that is not there."""
        try:
            self.unet.to(device)
        except (RuntimeError, AssertionError) as error:  # torch has no class of its own for it
            raise ConfigError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
        self.encoders.to(device)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        sampler: str | None = None,
        eta: float = 0.0,
        seed: int = 0,
        size: int | None = None,
        weights: Weights = "ema",
        latents: Tensor | None = None,
        batch_size: int = 16,
        progress: Callable[[int, int], None] = lambda done, total: None,
        ready: Callable[[int, Image.Image], None] = lambda i, image: None,
    ) -> list[Image.Image]:
        """One RGB picture of size x size pixels per prompt. None means the model's own default.

        negative_prompt: what to keep away from, one for all or one each. guidance_scale: how hard prompts pull; 1 is
        the network's own answer, at half the cost. guidance_rescale: in [0, 1], against overexposure. sampler: ddim,
        ddpm, euler, heun or dpmpp_2m. eta: in [0, 1], the fresh noise of ddim. size: a multiple of the VAE's factor.
        weights: the averaged network (ema), or the one as training left it (raw), which needs a run's checkpoints.

        seed: everything random in picture i comes from a CPU generator seeded with seed + i. So it is the same picture
        alone and in any batch (to rounding), on a CPU and a GPU, and in StableDiffusionPipeline when that is given
        `generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]`.
        latents: the initial noise itself, standard normal (B, C, size / factor, size / factor), instead of the seed's.

        batch_size: pictures at once. progress: called after each step with picture steps done and to do. ready: called with
        the number of each picture and the picture, when its batch is drawn.
        Raises ConfigError for what cannot be drawn. Warns of guidance on a model trained without caption dropout.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        size = self.defaults.size if size is None else size
        steps = self.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        _check_texts(prompts, negatives)
        check_whole("size", size)
        check_whole("num_inference_steps", steps)
        check_whole("batch_size", batch_size)
        check_whole("seed", seed, 0, LARGEST_SEED - len(prompts))
        _check_number("guidance_scale", scale)
        _check_number("guidance_rescale", guidance_rescale, 0, 1)
        check_resolution(size, downsampling_factor(self.encoders.vae), "size")
        shape = (len(prompts), *self._latent_shape(size))
        if latents is not None and latents.shape != shape:
            raise ConfigError(
                f"latents are {tuple(latents.shape)}; {len(prompts)} prompts and size={size} need {shape}"
            )
        run_sampler = self._sampler(sampler or self.defaults.sampler, eta)
        network = self.network(weights)
        if scale != 1 and self.defaults.caption_dropout == 0:
            warnings.warn(
                f"guidance_scale={scale}, but this model was trained without caption dropout: it never learnt what to "
                "guide away from. Expect better pictures at guidance_scale=1.",
                stacklevel=3,
            )
        images: list[Image.Image] = []
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            states = self.encoders.text(prompts[part])
            null = self.encoders.text(negatives[part]) if scale != 1 else None
            network_for_prompts = guided(network, states, null, scale, guidance_rescale)
            denoise = Denoiser(network_for_prompts, self.noise_schedule, self.prediction_type, steps)
            draw = self._draw(len(states), size, seed + first)
            noise = draw(-1) if latents is None else latents[part]
            start = denoise.initial(noise.to(states))
            for step, current in enumerate(run_sampler(denoise, start, denoise.sigmas, draw), 1):  # noqa: B007
                progress(first * steps + step * len(states), len(prompts) * steps)
            for image in map(to_pil, self.encoders.decode(current)):
                ready(len(images), image)
                images.append(image)
        return images

    def noise(self, count: int, size: int, seed: int) -> Tensor:
        """What `count` pictures start from, standard normal (count, C, h, w), on the CPU; number i is that of seed + i."""
        return self._draw(count, size, seed)(0)

    def _draw(self, count: int, size: int, seed: int) -> Callable[[int], Tensor]:
        """Call after call new noise (count, C, h, w), picture i's from its own generator, in diffusers' order."""
        generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
        shape = self._latent_shape(size)
        return lambda step: torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    def _latent_shape(self, size: int) -> tuple[int, int, int]:
        side = size // downsampling_factor(self.encoders.vae)
        return (self.encoders.vae.config.latent_channels, side, side)

    def _sampler(self, name: str, eta: float) -> Callable[..., Iterator[Tensor]]:
        sampler = get_sampler(name)
        _check_number("eta", eta, 0, 1)
        if eta and sampler is not ddim:
            raise ConfigError(f"eta={eta} is for sampler=ddim; {name} has none")
        return partial(sampler, eta=eta) if sampler is ddim else sampler

    def network(self, weights: Weights) -> nn.Module:
        """The UNet with these weights. Raises ConfigError where there are none of that kind."""
        if weights == "ema":
            return self.unet
        if weights != "raw":
            raise ConfigError(f"weights={weights!r} is unknown; expected ema or raw")
        if self._load_raw is None:
            raise ConfigError("weights=raw needs a run with checkpoints; a model folder holds the ema weights only")
        if self._raw is None:
            self._raw = self._load_raw()
        return self._raw.to(next(self.unet.parameters()).device)


def _check_texts(prompts: list[str], negatives: list[str]) -> None:
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
        if any("\ud800" <= sign <= "\udfff" for sign in text):
            raise ConfigError(f"{text[:100]!r} holds half a character (a lone surrogate): expected Unicode text")


def _check_number(name: str, value: object, least: float = -math.inf, most: float = math.inf) -> None:
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not least <= float(cast(Real, value)) <= most:
        wanted = "a number" if most == math.inf else f"a number in [{least}, {most}]"
        raise ConfigError(f"{name} is {value!r}: expected {wanted}")

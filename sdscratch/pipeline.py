"""Text to pictures: the public Python API.

pipe = TextToImage.from_pretrained("runs/quickstart")
pipe(["a red circle on the left on a white background"], seed=7)[0].save("circle.png")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image, ImageOps
from torch import Tensor

from sdscratch.data import to_pil
from sdscratch.data.images import as_rgb, to_tensor
from sdscratch.devices import device_of, dtype_of
from sdscratch.diffusion import (
    Denoise,
    Denoiser,
    FlowSchedule,
    NoiseSchedule,
    PredictionType,
    ddim,
    get_sampler,
    guided,
    guided_within,
)
from sdscratch.errors import ConfigError, DataError, check_choice, check_whole
from sdscratch.interop.model_source import load_model, raw_weights
from sdscratch.models.encoders import FrozenEncoders, downsampling_factor
from sdscratch.models.unet_kinds import AnyUNet
from sdscratch.sampling_settings import SamplingDefaults, SamplingSettings, texts_of

Weights = Literal["ema", "raw"]
LARGEST_SEED = 2**63 - 1


class TextToImage:
    """Prompts to pictures.

    unet: the averaged network, (latents, timesteps, encoder_hidden_states) -> prediction. load_raw: gives the one as
    training left it, if there is any.
    """

    def __init__(
        self,
        unet: AnyUNet,
        encoders: FrozenEncoders,
        noise_schedule: NoiseSchedule | FlowSchedule,
        prediction_type: PredictionType,
        defaults: SamplingDefaults,
        load_raw: Callable[[], AnyUNet] | None = None,
    ) -> None:
        self.unet, self.encoders = unet, encoders
        self.noise_schedule, self.prediction_type = noise_schedule, prediction_type
        self.defaults = defaults
        self._load_raw, self._raw = load_raw, cast(AnyUNet | None, None)

    @classmethod
    def from_pretrained(
        cls, model: str | Path, device: str | None = None, dtype: str = "fp32", tiling: bool = False
    ) -> TextToImage:
        """Read a finished run, a checkpoint of any run, a model folder, a cached hub id or a single file: see `load_model`.

        device: None means the GPU where there is one. dtype: of all networks, fp32, fp16 or bf16; what samplers compute stays
        in float32. tiling: decode pictures one by one and in overlapping parts, for little memory.
        Raises DataError when there is no model or it is damaged, ConfigError for a device or dtype that cannot be used.
        """
        place, number_type = device_of(device), dtype_of(dtype)
        unet, encoders, noise_schedule, prediction_type, about = load_model(model)
        known = {field.name for field in fields(SamplingDefaults)}
        given = {name: value for name, value in about.get("sampling", {}).items() if name in known}
        side = unet.config["sample_size"] or 64  # as diffusers takes null
        size = (side[0] if isinstance(side, list | tuple) else side) * downsampling_factor(encoders.vae)
        try:
            defaults = SamplingDefaults(**{"size": size, **given})
        except ConfigError as error:
            raise DataError(f"{model} says of itself what it cannot be sampled with: {error}") from error
        pipe = cls(unet, encoders, noise_schedule, prediction_type, defaults, partial(raw_weights, model, unet))
        if tiling:
            encoders.vae.enable_slicing()
            encoders.vae.enable_tiling()
        return pipe.to(place, number_type)

    def to(self, device: str | torch.device | None = None, dtype: torch.dtype | None = None) -> TextToImage:
        """Move all networks, or change their dtype, in place. Raises ConfigError for a device that is not there."""
        try:
            self.unet.to(device=device, dtype=dtype)
        except (RuntimeError, AssertionError) as error:  # torch has no class of its own for it
            raise ConfigError(f"device={device} cannot be used: {str(error).splitlines()[0]}") from error
        self.encoders.to(device, dtype)
        # Channels last decodes pictures in up to 30 % less time on a CPU; nobody has measured what a GPU takes.
        layout = torch.channels_last if self._device.type == "cpu" else torch.contiguous_format
        self.encoders.vae.to(memory_format=layout)
        return self

    @torch.no_grad()
    def __call__(
        self,
        prompts: str | Sequence[str],
        negative_prompt: str | Sequence[str] = "",
        *,
        seed: int = 0,
        weights: Weights = "ema",
        init_image: Image.Image | None = None,
        latents: Tensor | None = None,
        batch_size: int = 16,
        progress: Callable[[int, int], None] = lambda done, total: None,
        on_step: Callable[[int, int, Tensor], None] = lambda step, steps, estimate: None,
        ready: Callable[[int, Image.Image], None] = lambda i, image: None,
        **settings: Any,
    ) -> list[Image.Image]:
        """One RGB picture per prompt.

        negative_prompt: what to keep away from, one for all or one each. settings: those of SamplingSettings, and `size`, the
        height and width of a square; None, or nothing, means the model's own default.
        weights: the averaged network (ema), or the one as training left it (raw), which needs a run's checkpoints.
        init_image: draw from this picture on instead of from noise, as far as `strength` says. It is scaled and cropped at its
        centre to height and width.

        seed: everything random in picture i comes from a CPU generator seeded with seed + i. So it is the same picture
        alone and in any batch (to rounding), on a CPU and a GPU, and in StableDiffusionPipeline (or, with init_image, in
        StableDiffusionImg2ImgPipeline) when that is given
        `generator=[torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]`.
        latents: the initial noise itself, standard normal (B, C, height / factor, width / factor), instead of the seed's.

        batch_size: pictures at once. progress: called after each step with picture steps done and to do. on_step: called
        after each step with its number in this batch, from 1, how many there are, and the clean latents (B, C, h, w) as they
        are estimated then, which `encoders.decode` shows. ready: called with the number of each picture and the picture, when
        its batch is drawn. Raising in any of them stops the drawing.
        Raises ConfigError for what cannot be drawn. Warns of guidance on a model trained without caption dropout, and of
        pictures that are none because the numbers became infinite.
        """
        prompts, negatives = texts_of(prompts, negative_prompt)
        asked = self.defaults.settings(**settings)
        asked.check_factor(downsampling_factor(self.encoders.vae))
        check_whole("batch_size", batch_size)
        check_whole("seed", seed, 0, LARGEST_SEED - len(prompts))
        shape = self._latent_shape(asked.height, asked.width)
        if latents is not None and latents.shape != (len(prompts), *shape):
            raise ConfigError(
                f"latents are {tuple(latents.shape)}; {len(prompts)} prompts and "
                f"{', '.join(f'{name}={side}' for name, side in asked.sides.items())} need {(len(prompts), *shape)}"
            )
        self._warn_of_vain_guidance(asked)
        network = self.network(weights)
        image = None if init_image is None else to_tensor(_fitted(init_image, asked)).to(self._device)[None]
        images: list[Image.Image] = []
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            count = len(prompts[part])
            draw = _draw(count, shape, seed + first)
            denoise, grid = self._denoisers(network, asked, prompts[part], negatives[part])
            clean = None if image is None else self.encoders.encode_images(image, draw(-1).to(image))
            noise = (draw(-1) if latents is None else latents[part]).to(self._device, torch.float32)
            start, sigmas = grid.initial(noise), grid.sigmas
            if clean is not None:
                start, sigmas = grid.part_way(clean.float(), noise, asked.steps_left_out)
            watched, steps = _Watched(denoise), len(sigmas) - 1
            for step, current in enumerate(_sampler(asked)(watched, start, sigmas, draw), 1):  # noqa: B007
                progress(first * steps + step * count, len(prompts) * steps)
                on_step(step, steps, watched.estimate)
            if not current.isfinite().all():
                warnings.warn(
                    "the network's answers are no finite numbers: try less guidance_scale, or dtype=fp32 or bf16",
                    stacklevel=3,
                )
            for picture in map(to_pil, self.encoders.decode(current)):
                ready(len(images), picture)
                images.append(picture)
        return images

    def noise(self, count: int, size: int, seed: int) -> Tensor:
        """What `count` squares start from, standard normal (count, C, h, w), on the CPU; number i is that of seed + i."""
        return _draw(count, self._latent_shape(size, size), seed)(0)

    def network(self, weights: Weights) -> AnyUNet:
        """The UNet with these weights. Raises ConfigError where there are none of that kind."""
        check_choice("weights", weights, ("ema", "raw"))
        if weights == "ema":
            return self.unet
        if self._load_raw is None:
            raise ConfigError("weights=raw needs a run with checkpoints; a model folder holds the ema weights only")
        if self._raw is None:
            self._raw = self._load_raw()
        return self._raw.to(next(self.unet.parameters()))

    def _denoisers(
        self, network: AnyUNet, asked: SamplingSettings, prompts: list[str], negatives: list[str]
    ) -> tuple[Denoise, Denoiser]:
        """What the sampler asks, and a plain one, which knows the timesteps."""
        ask = partial(guided, network, read=network.read)
        both = self.encoders.text(prompts if asked.guidance_scale == 1 else [*prompts, *negatives])  # in one pass
        states, null = both[: len(prompts)], both[len(prompts) :]
        denoiser = partial(
            Denoiser,
            noise_schedule=self.noise_schedule,
            prediction_type=self.prediction_type,
            num_inference_steps=asked.num_inference_steps,
        )
        plain = denoiser(ask(states, None, 1))
        if asked.guidance_scale == 1:
            return plain, plain
        pulled = denoiser(ask(states, null, asked.guidance_scale, asked.guidance_rescale))
        interval = asked.guidance_interval
        return pulled if interval is None else guided_within(interval, pulled, plain), plain

    def _warn_of_vain_guidance(self, asked: SamplingSettings) -> None:
        if asked.guidance_scale != 1 and self.defaults.caption_dropout == 0:
            warnings.warn(
                f"guidance_scale={asked.guidance_scale}, but this model was trained without caption dropout: it never learnt "
                "what to guide away from. Expect better pictures at guidance_scale=1.",
                stacklevel=4,
            )

    @property
    def _device(self) -> torch.device:
        return next(self.unet.parameters()).device

    def _latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        factor = downsampling_factor(self.encoders.vae)
        return (self.encoders.vae.config.latent_channels, height // factor, width // factor)


class _Watched:
    """A denoiser whose last answer can be looked at."""

    estimate: Tensor

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise

    def __call__(self, latents: Tensor, sigma: float) -> Tensor:
        self.estimate = self.denoise(latents, sigma)
        return self.estimate


def _draw(count: int, shape: tuple[int, int, int], seed: int) -> Callable[[int], Tensor]:
    """Call after call new noise (count, C, h, w), picture i's from its own generator, in diffusers' order."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(count)]
    return lambda step: torch.stack([torch.randn(shape, generator=generator) for generator in generators])


def _sampler(asked: SamplingSettings) -> Callable[..., Iterator[Tensor]]:
    sampler = get_sampler(asked.sampler)
    return partial(sampler, eta=asked.eta) if sampler is ddim else sampler


def _fitted(image: Image.Image, asked: SamplingSettings) -> Image.Image:
    """In RGB, scaled to cover height and width, and cropped at its centre."""
    return ImageOps.fit(as_rgb(image), (asked.width, asked.height), Image.Resampling.LANCZOS)

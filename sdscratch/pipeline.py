"""Text to pictures: the public Python API.

pipe = TextToImage.from_pretrained("runs/quickstart")
pipe(["a red circle in the top left corner on a white background"], seed=7)[0].save("circle.png")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from PIL import Image
from torch import Tensor, nn

from sdscratch.data import check_resolution, to_pil
from sdscratch.diffusion import Denoiser, FlowSchedule, NoiseSchedule, PredictionType, ddim, get_sampler, guided
from sdscratch.errors import ConfigError, DataError
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.models.encoders import FrozenEncoders, downsampling_factor
from sdscratch.models.unet import UNet
from sdscratch.run_folder import RunFolder

Weights = Literal["ema", "raw"]


@dataclass(frozen=True)
class SamplingDefaults:
    """What a model is sampled with when nothing else is asked for; its folder carries it along.

    size: pixels. caption_dropout: the share of captions that training dropped; at 0 guidance has nothing to go by.
    """

    size: int
    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    sampler: str = "ddim"
    caption_dropout: float = 0.1

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


class TextToImage:
    """Prompts to pictures. Noise comes from a CPU generator per picture: seed + i, the same alone, in a batch, on a GPU."""

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
        """From a run's folder (its `model/`) or a model folder, onto the GPU where there is one.

        Raises DataError when there is no model or it is damaged.
        """
        run = RunFolder(model)
        folder = run.model_folder if run.model_folder.is_dir() else Path(model)
        if not (folder / "model_index.json").is_file():
            unfinished = " Its run has not finished: `sdscratch resume` it first." if run.holds_a_run() else ""
            raise DataError(f"{model} holds no model: expected a run or a folder with model_index.json.{unfinished}")
        unet, encoders, noise_schedule, prediction_type, about = load_model_folder(folder)
        known = {field.name for field in fields(SamplingDefaults)}
        size = unet.config["sample_size"] * downsampling_factor(encoders.vae)
        given = {name: value for name, value in about.get("sampling", {}).items() if name in known}
        load_raw = partial(_raw_weights, unet, run) if run.checkpoints() else None
        defaults = SamplingDefaults(**{"size": size, **given})
        pipe = cls(unet, encoders, noise_schedule, prediction_type, defaults, load_raw)
        return pipe.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))

    def to(self, device: str | torch.device) -> TextToImage:
        """Move all networks, in place."""
        self.unet.to(device)
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
    ) -> list[Image.Image]:
        """One RGB picture per prompt.

        negative_prompt: one for all, or one each. None means the model's own default. eta in [0, 1]: fresh noise in
        DDIM. seed: picture i starts from noise of seed + i. size: pixels, a multiple of the VAE's factor.
        latents: the noise itself, (B, C, size / factor, size / factor), in place of a seed. batch_size: pictures at once.
        progress: called with steps done and all steps. Raises ConfigError for what cannot be drawn.
        """
        prompts = [prompts] if isinstance(prompts, str) else list(prompts)
        negatives = [negative_prompt] * len(prompts) if isinstance(negative_prompt, str) else list(negative_prompt)
        if len(negatives) != len(prompts):
            raise ConfigError(f"{len(negatives)} negative prompts for {len(prompts)} prompts: give one, or one each")
        size = self.defaults.size if size is None else size
        check_resolution(size, downsampling_factor(self.encoders.vae))
        steps = self.defaults.num_inference_steps if num_inference_steps is None else num_inference_steps
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        run_sampler = self._sampler(sampler or self.defaults.sampler, eta)
        network = self._network(weights)
        noise = self.noise(len(prompts), size, seed) if latents is None else latents
        images: list[Image.Image] = []
        for first in range(0, len(prompts), batch_size):
            part = slice(first, first + batch_size)
            states = self.encoders.text(prompts[part])
            null = self.encoders.text(negatives[part]) if scale != 1 else None
            denoise = Denoiser(
                guided(network, states, null, scale, guidance_rescale), self.noise_schedule, self.prediction_type, steps
            )
            start = denoise.initial(noise[part].to(states.device))
            draw = partial(self._fresh_noise, first, len(states), size, seed)
            current = start
            for step, current in enumerate(run_sampler(denoise, start, denoise.sigmas, draw), 1):  # noqa: B007
                progress(first * steps + step * len(states), len(prompts) * steps)
            images += [to_pil(picture) for picture in self.encoders.decode(current).float().cpu()]
        return images

    def noise(self, count: int, size: int, seed: int) -> Tensor:
        """What `count` pictures start from, (count, C, h, w), on the CPU; number i is that of seed + i."""
        shape = self._latent_shape(size)
        return torch.cat([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(count)])

    def _fresh_noise(self, first: int, count: int, size: int, seed: int, step: int) -> Tensor:
        generators = [torch.Generator().manual_seed((seed + first + i) * 100_003 + step + 1) for i in range(count)]
        return torch.cat([torch.randn(self._latent_shape(size), generator=generator) for generator in generators])

    def _latent_shape(self, size: int) -> tuple[int, int, int, int]:
        side = size // downsampling_factor(self.encoders.vae)
        return (1, self.encoders.vae.config.latent_channels, side, side)

    def _sampler(self, name: str, eta: float) -> Callable[..., Iterator[Tensor]]:
        sampler = get_sampler(name)
        if not 0 <= eta <= 1:
            raise ConfigError(f"eta is {eta}; expected 0 (no fresh noise) to 1")
        if eta and sampler is not ddim:
            raise ConfigError(f"eta={eta} is for sampler=ddim; {name} has none")
        return partial(sampler, eta=eta) if sampler is ddim else sampler

    def _network(self, weights: Weights) -> nn.Module:
        if weights == "ema":
            return self.unet
        if weights != "raw":
            raise ConfigError(f"weights={weights!r} is unknown; expected ema or raw")
        if self._load_raw is None:
            raise ConfigError("weights=raw needs a run with checkpoints; a model folder holds the ema weights only")
        if self._raw is None:
            self._raw = self._load_raw()
        return self._raw.to(next(self.unet.parameters()).device)


def _raw_weights(unet: UNet, run: RunFolder) -> nn.Module:
    checkpoint = run.newest_intact_checkpoint()
    assert checkpoint is not None, "asked for only where there are checkpoints"
    prefix = "network."
    state = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.load()["state_dict"].items()}
    raw = UNet.from_config(unet.config).eval()
    raw.load_state_dict(state, strict=True)
    return raw

"""What `sdscratch evaluate` looks at, and with what; each is loaded when it is first asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sdscratch.commands.data_paths import optional
from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.commands.sample_request import settings_of
from sdscratch.config import build
from sdscratch.console import progress_bar
from sdscratch.errors import ConfigError, DataError, check_choice, check_whole
from sdscratch.run_folder import RunFolder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sdscratch.evaluation.clip_network import ClipNetwork
    from sdscratch.evaluation.features import FeatureNetwork, PictureSet
    from sdscratch.evaluation.prompt_suites import Prompt
    from sdscratch.evaluation.real_pictures import RealPictures
    from sdscratch.pipeline import TextToImage
    from sdscratch.sampling_settings import SamplingSettings


def evaluation_folder(model: object) -> Path:
    """Where a model's evaluation goes, and is looked for, unless another place is named."""
    from sdscratch.interop.run_checkpoint import run_around

    path = Path(str(model)).resolve()
    run = run_around(path)
    name = f"{run.path.name}_{path.stem}" if run is not None else path.name
    return Path("evaluations") / re.sub(r"\W+", "_", name)


@dataclass
class Subject:
    """A model by the configuration of `sdscratch evaluate`."""

    cfg: DictConfig

    @cached_property
    def folder(self) -> Path:
        """The model's, unless it is a file. Raises DataError where there is none."""
        from sdscratch.interop.diffusers_folder import find_model_folder

        run, model = self.run, str(self.cfg.model)
        if run.model_folder.is_dir() or (run.path / "vae").is_dir() or (run.path / "clip").is_dir():
            return run.model_folder if run.model_folder.is_dir() else run.path
        try:
            return find_model_folder(model)
        except DataError as error:
            raise DataError(f"{error}{'' if run.path.exists() else did_you_mean_run(model)}") from error

    @cached_property
    def run(self) -> RunFolder:
        """The one that model= names, or whose checkpoint it names."""
        from sdscratch.interop.model_source import run_of

        return run_of(str(self.cfg.model))

    @property
    def is_file(self) -> bool:
        """A checkpoint, or a whole model made elsewhere."""
        return self.run.path != Path(str(self.cfg.model)) or self.run.path.is_file()

    @cached_property
    def out(self) -> Path:
        return Path(optional(self.cfg, "out") or evaluation_folder(self.cfg.model))

    @property
    def has_unet(self) -> bool:
        return self.is_file or (self.folder / "unet").is_dir()

    @property
    def has_vae(self) -> bool:
        return self.is_file or (self.folder / "vae").is_dir()

    @property
    def has_clip(self) -> bool:
        from sdscratch.evaluation.clip_network import has_clip

        return str(self.cfg.clip) != str(self.cfg.model) or has_clip(self.run.path)

    @cached_property
    def device(self) -> str:
        from sdscratch.devices import device_of

        return device_of(self.cfg.device)

    @cached_property
    def pipe(self) -> TextToImage:
        from sdscratch.pipeline import TextToImage

        return TextToImage.from_pretrained(self.cfg.model, self.device)

    @cached_property
    def vae(self) -> AutoencoderKL:
        from sdscratch.models.encoders import load_vae

        return self.pipe.encoders.vae if self.has_unet else load_vae(str(self.folder)).eval().to(self.device)

    @cached_property
    def clip(self) -> ClipNetwork:
        from sdscratch.evaluation.clip_network import ClipNetwork

        path = self.run.path if str(self.cfg.clip) == str(self.cfg.model) else self.cfg.clip
        return ClipNetwork(str(path)).to(self.device)

    @cached_property
    def features(self) -> FeatureNetwork:
        return build(self.cfg.features).to(self.device)

    @cached_property
    def settings(self) -> SamplingSettings:
        """With which pictures are drawn. Raises ConfigError."""
        return self.pipe.defaults.settings(**settings_of(self.cfg))

    @property
    def negative_prompt(self) -> str:
        return optional(self.cfg, "negative_prompt") or ""

    @cached_property
    def size(self) -> int:
        """Of the squares that real pictures are cropped to, in pixels: as large as the drawn ones."""
        if self.has_unet:
            if self.settings.height != self.settings.width:
                raise ConfigError("real pictures are measured as squares: set size=, instead of height= and width=")
            return self.settings.height
        if self.cfg.size is not None:
            check_whole("size", self.cfg.size)
        return int(self.vae.config.sample_size if self.cfg.size is None else self.cfg.size)

    def check(self, prompts: Sequence[Prompt]) -> None:
        """Raise ConfigError or DataError for what could not be drawn or measured, before hours go into all that can."""
        if prompts:
            from sdscratch.devices import dtype_of
            from sdscratch.models.encoders import downsampling_factor
            from sdscratch.pipeline import LARGEST_SEED
            from sdscratch.sampling_settings import texts_of

            texts_of([prompt.text for prompt in prompts], self.negative_prompt)
            check_whole("seed", self.cfg.seed, 0, LARGEST_SEED - len(prompts))
            check_choice("weights", self.cfg.weights, ("ema", "raw"))
            dtype_of(self.cfg.dtype)
            self.settings.check_factor(downsampling_factor(self.pipe.encoders.vae))
        if self.path is not None:
            _ = self.real

    @cached_property
    def real(self) -> RealPictures:
        from sdscratch.evaluation.real_pictures import RealPictures

        return RealPictures(str(self.path), self.cfg.count, self.size)

    @property
    def path(self) -> str | None:
        """Of real pictures, if there are any."""
        return optional(self.cfg, "path")

    def embedded(self, pictures: PictureSet, network: FeatureNetwork, what: str) -> Any:
        """Features of pictures, (N, D), kept for the next time."""
        from sdscratch.evaluation.features import features_of

        cache = self.out / "features" if self.cfg.cache is None else Path(str(self.cfg.cache))
        with progress_bar(f"looking at {what}") as progress:
            return features_of(pictures, network, cache, self.cfg.batch_size, progress)

    def about_features(self) -> dict[str, Any]:
        """For a protocol."""
        return {"features": f"{self.features.kind} {self.features.path}", "their weights": self.features.fingerprint}

    def about_real(self) -> dict[str, Any]:
        """For a protocol."""
        return {"real pictures": self.real.path, "of them": self.real.fingerprint, "size": self.size}

"""What `sdscratch evaluate` looks at, and with what; each is loaded when it is first asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.config import build
from sdscratch.console import progress_bar
from sdscratch.errors import DataError, check_whole
from sdscratch.run_folder import RunFolder

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

    from sdscratch.evaluation.clip_network import ClipNetwork
    from sdscratch.evaluation.features import FeatureNetwork, PictureSet
    from sdscratch.evaluation.real_pictures import RealPictures
    from sdscratch.pipeline import TextToImage


@dataclass
class Subject:
    """A model by the configuration of `sdscratch evaluate`."""

    cfg: DictConfig

    @cached_property
    def folder(self) -> Path:
        """The model's. Raises DataError where there is none."""
        from sdscratch.interop.diffusers_folder import find_model_folder

        run, model = self.run, str(self.cfg.model)
        if self.is_checkpoint:
            return run.model_folder
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
    def is_checkpoint(self) -> bool:
        return self.run.path != Path(str(self.cfg.model))

    @cached_property
    def out(self) -> Path:
        model = Path(str(self.cfg.model)).resolve()
        name = f"{self.run.path.resolve().name}_{model.stem}" if self.is_checkpoint else model.name
        name = re.sub(r"\W+", "_", name)
        return Path(str(self.cfg.out)) if self.cfg.out is not None else Path("evaluations") / name

    @property
    def has_unet(self) -> bool:
        return self.is_checkpoint or (self.folder / "unet").is_dir()

    @property
    def has_clip(self) -> bool:
        from sdscratch.evaluation.clip_network import has_clip

        return str(self.cfg.clip) != str(self.cfg.model) or has_clip(self.run.path)

    @cached_property
    def device(self) -> str:
        from sdscratch.devices import best_device

        return str(self.cfg.device or best_device())

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
    def size(self) -> int:
        if self.cfg.size is not None:
            check_whole("size", self.cfg.size)
            return int(self.cfg.size)
        return self.pipe.defaults.size if self.has_unet else int(self.vae.config.sample_size)

    @cached_property
    def real(self) -> RealPictures:
        from sdscratch.evaluation.real_pictures import RealPictures

        return RealPictures(self.cfg.path, self.cfg.count, self.size)

    def embedded(self, pictures: PictureSet, network: FeatureNetwork, what: str) -> Any:
        """Features of pictures, (N, D), kept for the next time."""
        from sdscratch.evaluation.features import features_of

        cache = self.out / "features" if self.cfg.cache is None else Path(str(self.cfg.cache))
        with progress_bar(f"looking at {what}") as progress:
            return features_of(pictures, network, cache, self.cfg.batch_size, progress)

    def about_real(self) -> dict[str, Any]:
        """For a protocol."""
        return {"real pictures": self.real.path, "of them": self.real.fingerprint, "size": self.size}

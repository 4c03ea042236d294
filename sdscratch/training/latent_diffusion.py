"""Stage 3: a UNet learns to tell latents from noise, given a caption."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from sdscratch.data import LatentBatch
from sdscratch.data.grid import CaptionedImages
from sdscratch.diffusion import Objective, ValidationLoss
from sdscratch.errors import ConfigError, check_choice
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models.encoders import FrozenEncoders, TextEncoder
from sdscratch.models.regions import HowToCompile, compile_network
from sdscratch.pipeline import SamplingDefaults, TextToImage
from sdscratch.training import ranks
from sdscratch.training.stage import Augmentation, LrSchedule, MakeOptimizer, Stage


class LatentDiffusion(Stage):
    """Trains the UNet alone; VAE and text encoder are frozen and live outside the module.

    objective: what is asked of the UNet and how losses are weighted. sampling: how previews are drawn, and the defaults
    that the model folder hands on.

    compile: the network that is trained, in regions or as a whole; auto: in regions on CUDA, not elsewhere. Its average, which
    is only looked at now and then, stays as it is. memory_budget: below 1, less is kept between the passes and more computed
    again: where the network is compiled, the compiler chooses what; where it is not, layer by layer, and any number means that.
    """

    component = "unet"

    def __init__(
        self,
        network: nn.Module,
        encoders: FrozenEncoders,
        objective: Objective,
        sampling: SamplingDefaults,
        preview_prompts: list[str],
        *,
        optimizer: MakeOptimizer,
        lr_schedule: LrSchedule,
        ema_decay: float = 0.9999,
        max_grad_norm: float = 1.0,
        global_batch_size: int = 1,
        channels_last: bool = False,
        augment: Augmentation | None = None,
        compile: HowToCompile | Literal["auto"] = "auto",
        memory_budget: float = 1.0,
    ) -> None:
        check_choice("stage.compile", compile, ("auto", "no", "regions", "whole"))
        if not 0 <= memory_budget <= 1:
            raise ConfigError(f"stage.memory_budget is {memory_budget}: expected a share of the activations, in [0, 1]")
        super().__init__(
            network, optimizer, lr_schedule, ema_decay, max_grad_norm, global_batch_size, channels_last, augment
        )
        if not preview_prompts or not all(prompt.strip() for prompt in preview_prompts):
            raise ConfigError(
                f"stage.preview_prompts is {preview_prompts}: expected texts. callbacks.previews=null shows none."
            )
        self.encoders, self.objective, self.sampling = encoders, objective, sampling
        self.preview_prompts = preview_prompts
        self.how_to_compile, self.memory_budget = compile, memory_budget
        if objective.min_snr_gamma is not None:
            self.counts["gamma"] = objective.min_snr_gamma

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.encoders.to(self.device)
        how = self.how_to_compile
        if how == "auto":
            how = "regions" if self.device.type == "cuda" else "no"
        if how == "no" and self.memory_budget < 1:
            self.network.checkpoint_gradients()
        compile_network(self.network, how, self.memory_budget)

    def losses(self, batch: LatentBatch) -> dict[str, Tensor]:
        """Weighted loss, which is minimised, beside the unweighted one, which compares between runs."""
        losses = self._ask(self.network, batch)
        return {"loss": losses.weighted.mean(), "loss_unweighted": losses.unweighted.mean()}

    @torch.no_grad()
    def evaluate(self, network: Any, batches: Iterable[LatentBatch]) -> dict[str, float]:
        """Unweighted loss at fixed noise and fixed, evenly spread timesteps: overall, in four bins of the noise level, and of
        each source. Overall and in bins, sources count as `source_weights` says."""
        total = ValidationLoss(self.objective.num_train_timesteps, source_weights=self.source_weights)
        for batch in batches:
            total.add(self._ask(network, batch).unweighted, batch["timesteps"], batch["source"])
        total.totals = self.add_over_ranks(total.totals)
        return {f"val/{name}": value for name, value in total.result().items()}

    def preview(self, network: Any, batches: Iterable[Any]) -> CaptionedImages | None:
        """The same prompts from the same noise every time, each rank drawing its share of them.

        Picture i begins from seed i wherever it is drawn, so that the pictures do not depend on the number of ranks.
        """
        mine = ranks.share(len(self.preview_prompts))
        size = self.sampling.size
        drawn = torch.zeros(0, size, size, 3, dtype=torch.uint8, device=self.device)
        if mine:
            schedule, prediction_type = self.objective.noise_schedule, self.objective.prediction_type
            pipe = TextToImage(
                network, FrozenEncoders(self.encoders.vae, self._text), schedule, prediction_type, self.sampling
            )
            pictures = pipe([self.preview_prompts[i] for i in mine], seed=mine.start)
            drawn = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures]).to(self.device)
        drawn = ranks.join_rows(drawn)
        if not ranks.is_first():
            return None
        images = [Image.fromarray(pixels) for pixels in drawn.cpu().numpy()]
        return CaptionedImages(images, self.preview_prompts, columns=4)

    def save(self, network: Any, folder: Path, batches: Iterable[Any], about: Mapping[str, Any]) -> None:
        """A diffusers pipeline folder with `network` as its UNet."""
        save_model_folder(
            folder,
            unet=network,
            vae=self.encoders.vae,
            text=self.encoders.text,
            noise_schedule=self.objective.noise_schedule,
            prediction_type=self.objective.prediction_type,
            about={"sampling": self.sampling.as_dict(), **about},
        )

    def _ask(self, network: nn.Module, batch: LatentBatch) -> Any:
        latents = batch.get("latents")
        if latents is None:
            latents = self.encoders.encode_images(batch["images"], batch["vae_noise"])
        return self.objective(network, latents, batch["noise"], batch["timesteps"], self._states(batch))

    def _states(self, batch: LatentBatch) -> Tensor:
        """Of the captions, (B, T, D): as they were stored, where the shards hold them, with that of "" for those dropped."""
        if "encoder_hidden_states" not in batch:
            return self._text(batch["captions"])
        stored = batch["encoder_hidden_states"].float()
        return torch.where(batch["dropped"][:, None, None], self._text([""]), stored)

    @cached_property
    def _text(self) -> TextEncoder:
        """What comes again and again is encoded once."""
        return self.encoders.text.remembering(["", *self.preview_prompts])

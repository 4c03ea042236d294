"""A model out of one file made elsewhere: which kind it is, and all that the file itself does not hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import CLIPTokenizer

from sdscratch.diffusion import NoiseSchedule
from sdscratch.errors import DataError
from sdscratch.interop.diffusers_folder import Model, check_sizes
from sdscratch.interop.released_checkpoint import Weights, is_released, released_unet
from sdscratch.interop.single_file import configs_beside, is_single_file, read_single_file
from sdscratch.interop.weight_files import read_weight_file
from sdscratch.models.encoders import FrozenEncoders, downsampling_factor, load_text_encoder, load_vae
from sdscratch.models.tokenizer import load_tokenizer, read_tokenizer

RELEASED_SCHEDULE = NoiseSchedule(timestep_spacing="leading", steps_offset=0)
"""Of the released checkpoint: Stable Diffusion's betas, and timesteps that begin at 0."""

RELEASED_SAMPLING = {"num_inference_steps": 50, "guidance_scale": 7.5, "sampler": "ddim", "caption_dropout": 0.05}
RELEASED_SIDE = 64  # of its latents


@dataclass(frozen=True)
class ModelFile:
    """How to read a file, and what to complete it with.

    weights: the average or the live weights, where it has both. partial: take what fits. heads: of the released network's
    attention, which no shape tells. vae, text_encoder: model folders or hub ids in the local cache: the released checkpoint's
    encoders, and the tokenizer of a single file without configs. configs: a pipeline folder that says what a single file does
    not; None means STEM.configs beside it, else SD 1.x.
    """

    path: Path
    weights: Weights = "ema"
    partial: bool = False
    heads: int = 8
    vae: str = "stabilityai/sd-vae-ft-mse"
    text_encoder: str = "openai/clip-vit-large-patch14"
    configs: Path | None = None

    def load(self, say: Callable[[str], object] = lambda text: None) -> Model:
        """The whole model, on the CPU in float32. say: is told what a partial load leaves out.

        Raises DataError, in one line, for a file of another kind, and what does not fit.
        """
        content = read_weight_file(self.path)
        if is_single_file(content):
            beside = configs_beside(self.path)
            configs = self.configs or (beside if beside.is_dir() else None)
            model, left_out = read_single_file(
                content, str(self.path), self.weights, configs, self._tokenizer, self.partial
            )
            kind = "single_file"
        elif is_released(content):
            unet, left_out = released_unet(content, str(self.path), self.weights, self.heads, self.partial)
            text = load_text_encoder([], self.text_encoder, use_attention_mask=True)  # as it was trained
            encoders = FrozenEncoders(load_vae(self.vae), text)
            size = RELEASED_SIDE * downsampling_factor(encoders.vae)
            about = {"sampling": {"size": size, **RELEASED_SAMPLING}}
            model, kind = Model(unet, encoders, RELEASED_SCHEDULE, "epsilon", about), "released_checkpoint"
        else:
            raise DataError(
                f"{self.path} is no model that we know: expected Stable Diffusion 1.x in one file (tensors below "
                "model.diffusion_model), or the released sd_epoch_042.pt (unet_state_dict). It holds "
                f"{', '.join(map(str, list(content)[:5])) or 'nothing'}. Of a run, use RUN or RUN/checkpoints/step_*.ckpt"
            )
        for line in left_out:
            say(line)
        check_sizes(model, str(self.path))
        origin = {"file": self.path.name, "kind": kind}
        return model._replace(about={**model.about, "weights": self.weights, "imported": origin})

    def _tokenizer(self) -> CLIPTokenizer:
        folder = Path(self.text_encoder) / "tokenizer"
        return load_tokenizer(folder) if folder.is_dir() else read_tokenizer(self.text_encoder)

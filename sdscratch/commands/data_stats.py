"""`sdscratch data stats`: a page about a folder of shards."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from sdscratch.commands.data_paths import in_path, optional, out_folder
from sdscratch.console import progress_bar
from sdscratch.errors import DataError
from sdscratch.prepare.stats.contact import contact
from sdscratch.prepare.stats.page import summary, write_page
from sdscratch.prepare.stats.stats import collect

if TYPE_CHECKING:
    from diffusers import AutoencoderKL
    from transformers import CLIPTokenizer


def run(cfg: DictConfig) -> None:
    """Count what `path` holds and write the page about it to `out`."""
    path, out, model = in_path(cfg), out_folder(cfg), optional(cfg, "model")
    counter, vae = (None, None) if model is None else _parts_of(model)
    with progress_bar("counting") as progress:
        stats = collect(path, counter, cfg.engine, cfg.workers, progress)
    page = write_page(out, str(path), stats, *contact(path, vae))
    numbers = summary(stats)
    print(f"{path}: {numbers['samples']} samples, {numbers['captions']} captions; {page}")


@dataclass
class TokenCounter:
    """Captions -> tokens in each, start and end among them. Travels to workers."""

    tokenizer: CLIPTokenizer

    def __call__(self, captions: list[str]) -> list[int]:
        return [len(tokens) for tokens in self.tokenizer(captions, verbose=False)["input_ids"]]


def _parts_of(model: str) -> tuple[TokenCounter | None, AutoencoderKL | None]:
    """The tokenizer and the VAE of a run, a model folder or a hub id, as far as it has them."""
    from sdscratch.interop.diffusers_folder import find_model_folder
    from sdscratch.models.encoders import load_vae
    from sdscratch.models.tokenizer import load_tokenizer
    from sdscratch.run_folder import RunFolder

    folder = RunFolder(model).model_folder
    if not folder.is_dir():
        folder = Path(model) if Path(model).is_dir() else find_model_folder(model)
    has = [part for part in ("tokenizer", "vae") if (folder / part).is_dir()]
    if not has:
        raise DataError(f"model={model} has neither a tokenizer nor a VAE: expected a run or a model folder")
    counter = TokenCounter(load_tokenizer(folder / "tokenizer")) if "tokenizer" in has else None
    return counter, load_vae(str(folder)).eval() if "vae" in has else None

"""`sdscratch data encode`: image shards -> latent shards."""

from __future__ import annotations

from omegaconf import DictConfig

from sdscratch.commands.data_fallen import fallen
from sdscratch.commands.data_paths import in_path, optional, out_folder, required
from sdscratch.console import progress_bar
from sdscratch.devices import best_device
from sdscratch.prepare.encode.encoding import Encoding
from sdscratch.run_folder import RunFolder


def run(cfg: DictConfig) -> None:
    """Encode `path` into `out` with the VAE of `model`, and the captions with the text encoder of `text`."""
    out, text = out_folder(cfg), optional(cfg, "text")
    device = cfg.device or best_device()
    encoding = Encoding(
        source=in_path(cfg),
        out=out,
        vae=_networks(required(cfg, "model", "a run, a model folder or a hub id")),
        text=None if text is None else _networks(text),
        resolution=cfg.resolution,
        flips=cfg.flips,
        on_bad=cfg.on_bad,
        batch_size=cfg.batch_size,
        threads=cfg.threads,
        device=device,
        dtype=cfg.dtype or ("bfloat16" if device == "cuda" else "float32"),
        compile=cfg.compile,
    )
    with progress_bar("encoding") as progress:
        manifest, quality = encoding.run(cfg.engine, cfg.workers, progress)
    said = [f"{out}: latents of {manifest.total} pictures of {cfg.resolution} px", f"VAE {manifest.made_by['vae']}"]
    if quality is not None:
        said.append(f"decoded again {quality.psnr:.1f} dB")
        if encoding.dtype != "float32":
            said.append(f"{encoding.dtype} within {quality.error:.2%} of float32")
    print(f"{', '.join(said)}{fallen(out, manifest.dropped)}")


def _networks(model: str) -> str:
    """A run's model folder; else a folder or hub id as it stands."""
    of_run = RunFolder(model).model_folder
    return str(of_run if of_run.is_dir() else model)

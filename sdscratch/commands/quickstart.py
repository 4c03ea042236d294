"""`sdscratch quickstart`: draw a data set, train VAE, CLIP and UNet on it from nothing, sample, score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from PIL import Image

from sdscratch.commands import data_encode
from sdscratch.commands.train import train
from sdscratch.config import check_config, compose
from sdscratch.data.grid import captioned_grid
from sdscratch.data.shapes import Split, prompts
from sdscratch.errors import StoppedError, check_whole
from sdscratch.evaluation.shapes_judge import score
from sdscratch.files import read_json, write_atomically, write_json
from sdscratch.pipeline import TextToImage
from sdscratch.run_folder import RunFolder, folder_below

PICTURES = "samples.png"
SHOWN = 12  # pictures of each split in there


def run(cfg: DictConfig) -> None:
    """Each stage is reused where it is finished and resumed where it is not; see conf/quickstart.yaml."""
    try:
        _run(cfg)
    except StoppedError as error:
        raise error.continued_by("the same command") from error


def _run(cfg: DictConfig) -> None:
    for name in ("prompts", "batch_size"):
        check_whole(name, cfg[name])
    folder = RunFolder(folder_below(cfg.paths.runs, cfg.name))
    stages = Stages(folder.path / "report.json")
    runs = {name: f"{cfg.name}/{name}" for name in ("autoencoder", "clip")} | {"diffusion": cfg.name}
    parts = {name: _part(cfg, cfg[name], run_name) for name, run_name in runs.items()}

    with stages.timed("autoencoder", "1/5 VAE: pictures to latents and back"):
        autoencoder = train(parts["autoencoder"])
    with stages.timed("clip", "2/5 CLIP: which caption belongs to which picture"):
        train(parts["clip"])
    with stages.timed("encode", "3/5 latents of all pictures"):
        for split, path in (("train", parts["diffusion"].dataset.path), ("val", parts["diffusion"].dataset.val_path)):
            pictures = parts["autoencoder"].dataset
            job = [f"path={pictures.path}/{split}", f"out={path}", f"model={autoencoder.path}"]
            data_encode.run(compose("data/encode", [*job, f"resolution={pictures.resolution}"]))
    with stages.timed("diffusion", "4/5 UNet: latents from noise, given a caption"):
        train(parts["diffusion"])
    with stages.timed("sample", "5/5 pictures for prompts, and how well they follow them"):
        stages.report |= sample_and_score(folder, cfg.prompts, cfg.batch_size, stages.report)
    scores = stages.report
    print(
        f"\nof {cfg.prompts} held-out prompts: "
        + ", ".join(f"{name} {scores[name]:.2f}" for name in ("colour", "position", "background", "shape", "all"))
        + f"; all, of colour-shape pairs never seen: {scores['unseen_all']:.2f}"
        + f"\npictures: {folder.path / PICTURES}\nmodel:    {folder.model_folder}"
        + f'\nmore:     sdscratch sample model={folder.path} prompt="a yellow ring at the top on a black background"'
    )


class Stages:
    """What each stage took, kept in report.json from call to call: a stage that is reused keeps its time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.report: dict = {"seconds": {}, **read_json(file)}

    @contextmanager
    def timed(self, name: str, announcement: str) -> Iterator[None]:
        """Announce a stage, run it, and add its time to that of earlier, interrupted calls."""
        done = name in self.report.get("finished", [])
        print(announcement, flush=True)
        start = time.perf_counter()
        try:
            yield
        finally:
            if not done:
                seconds = self.report["seconds"]
                seconds[name] = round(seconds.get(name, 0.0) + time.perf_counter() - start, 1)
                self.save()
        self.report["finished"] = sorted({*self.report.get("finished", []), name})
        self.save()
        if not done:
            print(f"    {name}: {self.report['seconds'][name]:.0f} s", flush=True)

    def save(self) -> None:
        """Write report.json."""
        write_json(self.file, self.report)


def _part(cfg: DictConfig, experiment: str, run_name: str) -> DictConfig:
    overrides = [f"experiment={experiment}", f"name={run_name}", f"seed={cfg.seed}", "resume_from=auto"]
    part = compose("train", [*overrides, f"paths.runs={cfg.paths.runs}", f"paths.data={cfg.paths.data}"])
    check_config(part)
    return part


def sample_and_score(folder: RunFolder, count: int, batch_size: int, report: Mapping[str, Any]) -> dict[str, Any]:
    """The judge's fractions on `count` prompts of seen pairs, and `unseen_` ones on as many of pairs never seen; samples.png.

    report: of earlier calls; where the model and the prompts are as they were then, there is nothing to add to it.
    """
    drawn = {"model": _digest(folder.model_folder), "prompts": count}
    if report.get("drawn") == drawn and (folder.path / PICTURES).is_file():
        print(f"{folder.path / PICTURES} is there: nothing to do")
        return {}
    pipe = TextToImage.from_pretrained(folder.path)
    scores: dict[str, float] = {}
    shown: list[Image.Image] = []
    captions: list[str] = []
    split: Split
    for split, prefix in (("val", ""), ("unseen", "unseen_")):
        texts, scenes = zip(*prompts(split, count, seed=0), strict=True)
        images = pipe(texts, seed=0, batch_size=batch_size)
        scores |= {f"{prefix}{name}": value for name, value in score(images, scenes).items()}
        shown += images[:SHOWN]
        captions += texts[:SHOWN]
    title = (
        f"Drawn by {folder.path} for the texts below (EMA weights, {pipe.defaults.num_inference_steps} sampling steps). "
        "Upper half: colour-shape pairs of the training set. Lower half: pairs that were never in it."
    )
    picture = captioned_grid(shown, captions, columns=6, title=title)
    write_atomically(folder.path / PICTURES, lambda file: picture.save(file, "PNG"))
    return scores | {"drawn": drawn}


def _digest(model: Path) -> str:
    """Of all files of a model folder."""
    digest = sha256()
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(model)).encode() + file.read_bytes())
    return digest.hexdigest()

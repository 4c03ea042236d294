"""`sdscratch evaluate`: tables, plots and pictures about a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, ListConfig

from sdscratch.commands.evaluated import Subject
from sdscratch.config import build, load_config
from sdscratch.console import progress_bar, say, warn
from sdscratch.errors import ConfigError, DataError, check_whole
from sdscratch.files import write_atomically

if TYPE_CHECKING:
    from sdscratch.evaluation.drawn_pictures import DrawnPictures
    from sdscratch.evaluation.prompt_suites import Prompt
    from sdscratch.evaluation.results import Table

MEASURES = ("loss", "pictures", "autoencoder", "retrieval")
MOST_PICTURES, MOST_REPLICATES = 1_000_000, 100_000
SHOWN, SHOWN_OF_CATEGORY, COLUMNS = 24, 6, 6  # pictures in a grid


def run(cfg: DictConfig) -> None:
    """Write report.html and results.json into `out`, or, as one part of several, draw pictures there."""
    check_whole("count", cfg.count, most=MOST_PICTURES)
    check_whole("batch_size", cfg.batch_size)
    check_whole("replicates", cfg.replicates, 0, MOST_REPLICATES)
    part = _part(cfg.part)
    subject = Subject(cfg)
    measures = _measures(cfg.measures, subject)
    prompts = build(cfg.suite) if "pictures" in measures else []
    subject.check(prompts)
    if part is not None:
        if "pictures" not in measures:
            raise ConfigError("part= shares the drawing of pictures, but none are to be drawn")
        say(f"{_drawn(subject, prompts, part).folder}: part {cfg.part} is drawn")
        return

    from sdscratch.evaluation.report import REPORT, write_report
    from sdscratch.evaluation.results import ALL, Evaluation

    found: dict[str, Iterable[Table]] = {}
    grids: dict[str, str] = {}
    if "loss" in measures:
        found["loss"] = list(_loss(subject, asked_for=cfg.measures is not None))
    if "autoencoder" in measures:
        found["autoencoder"] = [_autoencoder(subject)]
    if "pictures" in measures:  # when all else is done with the networks: `dtype` rounds them
        pictures = _drawn(subject, prompts)
        found["pictures"] = list(_of_pictures(subject, pictures))
        grids = _grids(subject.out, pictures)
    if "retrieval" in measures:
        found["retrieval"] = [_retrieval(subject)]
    tables = [table for name in MEASURES for table in found.get(name, [])]
    evaluation = Evaluation(f"Evaluation of {cfg.model}", tables, grids)
    evaluation.write(subject.out)
    for table in tables:
        for row in table.rows:
            interval = "" if row.low is None else f"  ({row.low:.4g} to {row.high:.4g})"
            group = "" if row.group == ALL else f", {row.group}"
            say(f"{table.title}: {row.measure}{group}  {row.value:.4g}{interval}")
    print(write_report(subject.out / REPORT, evaluation.title, {subject.out: evaluation}))


def _measures(asked: Any, subject: Subject) -> list[str]:
    """What is to be measured. Raises ConfigError for what is not known, or cannot be."""
    cfg = subject.cfg
    possible = {
        "loss": (subject.has_unet and subject.run.recipe_file.is_file(), "a run of stage=diffusion as model="),
        "pictures": (subject.has_unet, "a model with a UNet"),
        "autoencoder": (
            subject.has_vae and subject.path is not None,
            "a VAE, and path=FOLDER of image shards",
        ),
        "retrieval": (
            subject.has_clip and subject.path is not None,
            "a CLIP (clip=FOLDER), and path=FOLDER of image shards",
        ),
    }
    if asked is None:
        found = [name for name, (can, _) in possible.items() if can]
        if not found:
            raise ConfigError(f"{cfg.model} alone leaves nothing to measure: set path=FOLDER, of image shards")
        return found
    names = [str(name) for name in asked] if isinstance(asked, ListConfig) else [str(asked)]
    if not names:
        raise ConfigError(f"measures is empty: expected some of {', '.join(MEASURES)}")
    for name in names:
        if name not in possible:
            raise ConfigError(f"measures names {name!r}: expected some of {', '.join(MEASURES)}")
        if not possible[name][0]:
            raise ConfigError(f"measures={name} needs {possible[name][1]}; model is {cfg.model}, path {cfg.path}")
    return names


def _part(part: Any) -> tuple[int, int] | None:
    if part is None:
        return None
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", str(part))
    if not found or not int(found[1]) < int(found[2]):
        raise ConfigError(f"part is {part}: expected 0/4 for the first of four processes, 3/4 for the last")
    return int(found[1]), int(found[2])


def _drawn(subject: Subject, prompts: Sequence[Prompt], part: tuple[int, int] = (0, 1)) -> DrawnPictures:
    """All pictures of the suite, or those of a part; drawn where they are not there yet."""
    from sdscratch.devices import dtype_of
    from sdscratch.evaluation.drawn_pictures import DrawnPictures
    from sdscratch.models.encoders import fingerprint

    cfg, pipe = subject.cfg, subject.pipe
    protocol = {
        "model": str(cfg.model),
        "network": fingerprint(pipe.network(cfg.weights)),
        "negative_prompt": subject.negative_prompt,
        **{name: value for name, value in subject.settings.as_dict().items() if name != "strength"},
        **{name: cfg[name] for name in ("weights", "dtype", "seed", "batch_size")},
        "N": len(prompts),
        "suite": cfg.suite._target_.rpartition(".")[2],
        "prompts": sha256(repr([prompt[:2] for prompt in prompts]).encode()).hexdigest()[:16],
    }
    pictures = DrawnPictures(subject.out / "pictures", prompts, protocol)
    with progress_bar("drawing") as progress:
        pictures.draw(pipe.to(dtype=dtype_of(cfg.dtype)), part, progress)
    return pictures


def _of_pictures(subject: Subject, pictures: DrawnPictures) -> Iterator[Table]:
    from sdscratch.evaluation import picture_tables

    cfg, prompts = subject.cfg, pictures.prompts
    if any(prompt.scene for prompt in prompts):
        yield picture_tables.judged_table(pictures, pictures.protocol, cfg.replicates)
    if not subject.has_clip:
        warn(f"{cfg.model} has no CLIP: no CLIP score without clip=FOLDER")
    else:
        images = subject.embedded(pictures, subject.clip, "drawn pictures")
        texts = subject.clip.captions([prompt.text for prompt in prompts])
        protocol = {**pictures.protocol, "clip": subject.clip.path, "its weights": subject.clip.fingerprint}
        yield picture_tables.caption_table(images, texts, prompts, protocol, cfg.replicates)
    if subject.path is not None and [prompt.text for prompt in prompts] == subject.real.captions:
        network = subject.features
        drawn = subject.embedded(pictures, network, "drawn pictures")
        real = subject.embedded(subject.real, network, "real pictures")
        protocol = {**pictures.protocol, **subject.about_real(), **subject.about_features()}
        logits = network.class_logits(drawn)
        yield picture_tables.distribution_table(real, drawn, logits, protocol, cfg.replicates)


def _grids(out: Path, pictures: DrawnPictures) -> dict[str, str]:
    """Sheets of the first pictures, of each category where there are several: {title: file below `out`}."""
    from sdscratch.data.grid import captioned_grid
    from sdscratch.evaluation.picture_tables import categories

    groups = {name: numbers[:SHOWN_OF_CATEGORY] for name, numbers in categories(pictures.prompts).items()}
    if len(groups) < 2:
        groups = {"the first pictures": list(range(min(SHOWN, len(pictures))))}
    files = dict[str, str]()
    for place, (name, numbers) in enumerate(groups.items()):
        sheet = captioned_grid(
            [pictures.picture(i) for i in numbers], [pictures.prompts[i].text for i in numbers], COLUMNS
        )
        files[name] = f"grids/{place:02d}.png"
        write_atomically(out / files[name], partial(sheet.save, format="PNG"))
    return files


def _loss(subject: Subject, asked_for: bool) -> Iterator[Table]:
    """A model may have outlived the data that it was trained on: unless the loss was asked for, it then goes without."""
    try:
        yield _measured_loss(subject)
    except (ConfigError, DataError) as error:
        if asked_for:
            raise
        warn(f"no held-out loss: {error}")


def _measured_loss(subject: Subject) -> Table:
    from sdscratch.commands.assembly import make_stage
    from sdscratch.evaluation.part_tables import loss_table
    from sdscratch.models.encoders import fingerprint

    recipe = load_config(subject.run.recipe_file)
    if "objective" not in recipe:
        raise ConfigError(f"{subject.cfg.model} is no run of stage=diffusion: it has no such loss")
    datamodule = build(recipe.dataset)
    datamodule.prepare_data()
    datamodule.start_step = recipe.max_steps  # as at its end: what the run has learnt beside its weights is read again
    stage: Any = make_stage(recipe, datamodule, subject.run)
    stage.encoders.to(subject.device)
    unet = subject.pipe.network(subject.cfg.weights)
    batches = (
        stage.transfer_batch_to_device(batch, subject.device, 0) for batch in datamodule.val_dataloader(whole=True)
    )
    protocol = {
        "model": str(subject.cfg.model),
        "network": fingerprint(unet),
        "weights": subject.cfg.weights,
        "prediction type": stage.objective.prediction_type,
        "data": datamodule.fingerprint,
        "seed": "that of training's validation",
    }
    return loss_table(unet, stage.objective, stage.encoders, batches, protocol, subject.cfg.replicates)


def _autoencoder(subject: Subject) -> Table:
    from sdscratch.evaluation.part_tables import autoencoder_table
    from sdscratch.models.encoders import fingerprint

    cfg = subject.cfg
    protocol = {
        "model": str(cfg.model),
        "network": fingerprint(subject.vae),
        **subject.about_real(),
        **subject.about_features(),
    }
    with progress_bar("reconstructing") as progress:
        return autoencoder_table(
            subject.vae, subject.real, subject.features, protocol, cfg.replicates, cfg.batch_size, progress
        )


def _retrieval(subject: Subject) -> Table:
    from sdscratch.evaluation.part_tables import retrieval_table

    clip, real = subject.clip, subject.real
    protocol = {"model": clip.path, "network": clip.fingerprint, **subject.about_real()}
    images = subject.embedded(real, clip, "real pictures")
    return retrieval_table(clip, images, real.captions, protocol, subject.cfg.replicates)

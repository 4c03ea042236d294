"""What `sdscratch` can be told to do: each verb with its module, its configuration, and what its help says."""

from __future__ import annotations

from typing import NamedTuple


class Verb(NamedTuple):
    """module: below sdscratch.commands. config: below conf/; None for verbs that take a run instead: `VERB RUN`.

    named: the keys that plain words stand for, one after the other. arguments, about_them: for its help, where no
    configuration says what it takes.
    """

    module: str
    config: str | None
    help: str
    examples: tuple[str, ...]
    arguments: str = "[key=value ...]"
    about_them: str = ""
    named: tuple[str, ...] = ()


VERBS = {
    "quickstart": Verb(
        "quickstart",
        "quickstart",
        "Draw a data set, train VAE, CLIP and UNet on it from nothing, and sample pictures; a second call resumes.",
        ("sdscratch quickstart", "sdscratch quickstart name=second seed=1"),
    ),
    "train": Verb(
        "train",
        "train",
        "Train one stage (autoencoder, clip or diffusion) into the run folder runs/NAME.",
        (
            "sdscratch train experiment=tiny name=try1",
            "sdscratch train experiment=tiny name=try2 max_steps=60 trainer.accumulate_grad_batches=2",
            "sdscratch train experiment=tiny name=try3 init_from=runs/try1 optimizer.lr=5.0e-4",
            "sdscratch train -m experiment=tiny name=lr optimizer.lr=1.0e-4,2.0e-4",
        ),
    ),
    "curriculum": Verb(
        "curriculum",
        "curriculum",
        "Train phases one after the other, each from the final checkpoint of the one before; the same command goes on.",
        (
            "sdscratch curriculum name=first",
            "sdscratch curriculum name=small phases=[p1_laion_broad,p4_faces] train=[trainer=gpu,max_steps=1000]",
            "sdscratch curriculum name=second overrides.p4_faces=[optimizer.lr=1.0e-6,dataset.replay.share=0.2]",
        ),
    ),
    "curriculum plan": Verb(
        "curriculum_plan",
        "curriculum",
        "Show what a curriculum would do: steps, samples, learning rates, data, GPU-hours, disk. Starts nothing.",
        ("sdscratch curriculum plan name=first", "sdscratch curriculum plan name=first samples_per_second=120"),
    ),
    "curriculum status": Verb(
        "curriculum_status",
        "curriculum",
        "Show where a curriculum stands.",
        ("sdscratch curriculum status name=first",),
    ),
    "curriculum report": Verb(
        "curriculum_report",
        "curriculum",
        "Write a page about a curriculum: its curves, what each phase forgot, and what each phase draws.",
        ("sdscratch curriculum report name=first",),
    ),
    "resume": Verb(
        "resume",
        None,
        "Continue a run from its newest valid checkpoint, with the configuration that it was started with.",
        ("sdscratch resume runs/try1", "sdscratch resume runs/try1 max_steps=60 optimizer.lr=5.0e-4"),
        "RUN [key=value ...]",
        """\
Set any key of the run's own configuration, RUN/recipe.yaml; `sdscratch train --help` lists and explains the keys.
  max_steps=60                       a new length, which the learning rate follows
  resume.allow_change=[global_batch_size] global_batch_size=8
                                     what makes a run what it is (model, data, seed, ...) changes only with permission
Not name, paths and init_from: with others it would be another run.""",
    ),
    "checkpoints": Verb(
        "checkpoints",
        None,
        "List the checkpoints of a run; verify reads them whole, prune removes those that need not stay.",
        (
            "sdscratch checkpoints runs/try1",
            "sdscratch checkpoints runs/try1 verify",
            "sdscratch checkpoints runs/try1 prune keep_last=1 keep_best=0",
        ),
        "RUN [verify | prune [key=value ...]]",
        """\
Without a word more: step, samples, size and validation loss of each.
  verify         read every byte, and compare it with what was written; exit code 2 where one differs
  prune          remove all but the following; keys that are not given are as the run was configured
    keep_last=N    the N newest, at least 1
    keep_every=N   those of steps that are multiples of N
    keep_best=N    the N of the lowest validation loss""",
    ),
    "ema": Verb(
        "ema",
        "ema",
        "Make a model with an average of any length out of the snapshots of a run with callbacks=posthoc_ema.",
        (
            "sdscratch ema runs/try1 length=0.07",
            "sdscratch ema runs/try1 length=0.07 step=20 out=models/try1_early",
        ),
        "RUN length=NUMBER [key=value ...]",
        named=("model",),
    ),
    "sweep-table": Verb(
        "sweep_table",
        None,
        "What a sweep has found: its runs, best first, as a table, a picture, CSV and JSON.",
        ("sdscratch sweep-table runs/lr",),
        "SWEEP",
    ),
    "dashboard": Verb(
        "dashboard",
        "dashboard",
        "Make the W&B view of a project's runs that conf/dashboard.yaml describes.",
        ("sdscratch dashboard", "sdscratch dashboard entity=my-team project=faces"),
    ),
    "doctor": Verb(
        "doctor",
        "doctor",
        "Look whether this machine is ready to train: packages, devices, disk, loader, network; exit code 2 if it is not.",
        ("sdscratch doctor", "sdscratch doctor experiment=tiny trainer=gpu"),
    ),
    "data shapes": Verb(
        "data_shapes",
        "data/shapes",
        "Draw the embedded data set: captioned scenes of coloured shapes, as shards.",
        ("sdscratch data shapes out=data/shapes",),
    ),
    "data fetch": Verb(
        "data_fetch",
        "data/fetch",
        "Fetch the files of a published collection, after saying how large they are and under which licence.",
        (
            "sdscratch data fetch source=diffusiondb out=data/diffusiondb dry_run=true",
            "sdscratch data fetch source=coco out=data/coco yes=true",
            "sdscratch data fetch source=coco out=data/coco mirror=/mnt/datasets/coco",
        ),
    ),
    "data filter": Verb(
        "data_filter",
        "data/filter",
        "Keep the rows of metadata that fit rules, each picture once, and say why the others fell.",
        (
            "sdscratch data filter rules=laion_broad path=data/laion_metadata out=data/laion_broad_rows",
            "sdscratch data filter path=rows.csv out=data/rows rules.min_aesthetic=null on_missing=skip",
        ),
    ),
    "data download": Verb(
        "data_download",
        "data/download",
        "Download the pictures of rows with URLs into shards, politely; says of each that fell why it did.",
        (
            "sdscratch data download path=data/laion_refined out=data/images/laion_refined pictures.size=512",
            "sdscratch data download path=rows.parquet out=data/images pictures.crop=centre manners.per_host=2",
        ),
    ),
    "data pack": Verb(
        "data_pack",
        "data/pack",
        "Pack a collection into image shards: a folder of pictures, DiffusionDB, JourneyDB, VGGFace2, COCO, or tars in place.",
        (
            "sdscratch data pack kind=folder path=photos out=data/images/photos",
            "sdscratch data pack kind=coco path=raw/coco out=data/images/bodies min_height=0.55 workers=8",
            "sdscratch data pack kind=webdataset path=data/images/laion",
        ),
    ),
    "data select": Verb(
        "data_select",
        "data/select",
        "Choose samples of a folder of shards by a condition in SQL on their records; copies nothing.",
        (
            'sdscratch data select path=data/latents/laion_broad out=data/latents/laion_refined where="aesthetic >= 7.5"',
            "sdscratch data select path=data/images/x out=data/images/y where=\"list_contains(captions, 'a dog')\"",
        ),
    ),
    "data encode": Verb(
        "data_encode",
        "data/encode",
        "Encode image shards into latent shards with a trained VAE.",
        ("sdscratch data encode path=data/shapes/train out=data/latents/train model=runs/quickstart resolution=32",),
        about_them="""\
`sdscratch data shapes out=data/shapes` draws these pictures, `sdscratch quickstart` trains this VAE. Any folder of image shards
will do, and any model folder, or run of stage=autoencoder.""",
    ),
    "data verify": Verb(
        "data_verify",
        "data/verify",
        "Compare a folder of shards with its manifest: bytes, counts, pictures, latents; exit code 2 if it is damaged.",
        (
            "sdscratch data verify path=data/shapes/train",
            "sdscratch data verify path=data/laion decode=false workers=8",
        ),
    ),
    "data stats": Verb(
        "data_stats",
        "data/stats",
        "Write a page about a folder of shards: sizes, captions, words, latents, and a contact sheet.",
        (
            "sdscratch data stats path=data/shapes/train",
            "sdscratch data stats path=runs/quickstart/latents/train model=runs/quickstart out=stats",
        ),
    ),
    "data dedup": Verb(
        "data_dedup",
        "data/dedup",
        "Find pictures that are nearly the same, within a folder and in others, and select those that are not.",
        (
            "sdscratch data dedup path=data/shapes/train against=[data/shapes/val]",
            "sdscratch data dedup path=data/laion out=data/laion_unique distance=4 workers=8",
        ),
    ),
    "sample": Verb(
        "sample",
        "sample",
        "Make pictures from prompts with a trained model.",
        (
            'sdscratch sample prompt="a red circle on a blue background"',
            'sdscratch sample model=runs/try1 prompt="a sunset, cinematic (4k)" seed=3',
            "sdscratch sample prompt='[a red circle, \"a blue ring, on the left\"]' num_per_prompt=4",
            "sdscratch sample batch=prompts.txt out=pictures",
            'sdscratch sample prompt="a castle on a hill" init_image=sketch.png strength=0.6',
            "sdscratch sample model=runs/try1 prompt=\"a red ring\" compare='{model: checkpoints}'",
            "sdscratch sample interactive=true",
        ),
    ),
    "serve": Verb(
        "serve",
        "serve",
        "Serve a model: an HTTP API, and a page to draw with and to watch runs on.",
        (
            "sdscratch serve",
            "sdscratch serve model=runs/try1 port=8080",
            "sdscratch serve model=models/mine host=0.0.0.0 fixed_model=true limits.max_steps=50",
        ),
    ),
    "evaluate": Verb(
        "evaluate",
        "evaluate",
        "Measure a model: loss, FID, CLIP score, prompts by category, its VAE and CLIP; writes a page. Again: goes on.",
        (
            "sdscratch evaluate",
            "sdscratch evaluate model=runs/try1 suite=captions path=data/images/val",
            "sdscratch evaluate model=runs/x suite=partiprompts suite.path=PartiPrompts.tsv clip=openai/clip-vit-base-patch32",
        ),
    ),
    "evaluate compare": Verb(
        "evaluate_compare",
        "evaluate_compare",
        "Put several evaluations side by side on one page, and say where their protocols differ.",
        ("sdscratch evaluate compare evaluations=[evaluations/a,evaluations/b]",),
    ),
    "import": Verb(
        "import_model",
        "import",
        "Make a model folder of a model made elsewhere: a diffusers folder, one file of SD 1.x, the released sd_epoch_042.pt.",
        (
            "sdscratch import downloads/sd_epoch_042.pt models/released",
            "sdscratch import hf:OWNER/NAME/model.safetensors models/name",
            "sdscratch import model.safetensors models/mine configs=models/other partial=true",
        ),
        "SOURCE OUT [key=value ...]",
        named=("path", "out"),
    ),
    "export": Verb(
        "export",
        "export",
        "Write a model for other programs: a diffusers folder, or one file as for Stable Diffusion 1.x, with a model card.",
        (
            "sdscratch export runs/try1 exports/try1 dtype=fp16",
            "sdscratch export runs/try1 exports/try1.safetensors format=single_file",
            "sdscratch export runs/try1 exports/try1 push=OWNER/NAME",
        ),
        "MODEL OUT [key=value ...]",
        named=("model", "out"),
    ),
    "bench": Verb(
        "bench",
        "bench",
        "Measure how fast it is, side by side with others that do the same; writes a table, a picture and JSON.",
        (
            "sdscratch bench train",
            "sdscratch bench unet rounds=20 strict=true",
            "sdscratch bench all model=unet_mid device=cpu",
        ),
        "[unet | train | loader | sample | encode | startup | all] [key=value ...]",
        named=("what",),
    ),
    "bench gpu": Verb(
        "bench_gpu",
        "bench_gpu",
        "Measure all that is asked of one GPU, at the sizes that it is asked of, within 8 minutes and in one table.",
        ("sdscratch bench gpu", "sdscratch bench gpu model=unet_sd1x_hd64 minutes=6 strict=true"),
    ),
}

"""The command line: `sdscratch VERB [key=value ...]`; see the README for a tour.

A verb composes its configuration, checks it and hands it to `run(cfg)` of its module in sdscratch.commands. Modules
load when they are needed, so that help and refusals come at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from sdscratch import __version__
from sdscratch.console import forget_lost_readers
from sdscratch.errors import CannotWriteError, ConfigError, SdscratchError, out_of_memory

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sdscratch.config import Group


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
            "sdscratch data download path=data/laion_refined out=data/images/laion_refined size=512",
            "sdscratch data download path=rows.parquet out=data/images crop=centre manners.per_host=2",
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
    "data verify": Verb(
        "data_verify",
        "data/verify",
        "Compare a folder of shards with its manifest: bytes, counts, pictures, latents; exit code 2 if it is damaged.",
        (
            "sdscratch data verify path=data/shapes/train",
            "sdscratch data verify path=data/laion decode=false workers=8",
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
        ),
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
}

CONFIG_ERRORS = ("hydra", "omegaconf", "yaml")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `arguments` default to those of the process.

    What the user can mend is one message on stderr (HYDRA_FULL_ERROR=1 adds the traceback). Our own bugs are raised.
    """
    # Threads spin for a moment at barriers, then sleep. By default they spin 30 times longer, and so keep the others from
    # getting there: on a machine that does anything else a step may take ten times as long. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except SdscratchError as error:
        return _complain(error, error.exit_code)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        return _complain(error, CannotWriteError.exit_code)
    except KeyboardInterrupt:
        print("sdscratch: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if (wanted := out_of_memory(error)) is not None:
            return _complain(wanted, wanted.exit_code)
        if type(error).__module__.partition(".")[0] not in CONFIG_ERRORS:
            raise
        # A key that a command asked for and the user removed, or a value that is no YAML.
        return _complain(ConfigError(" ".join(str(error).split())), ConfigError.exit_code)
    finally:
        forget_lost_readers()
    return 0


def _complain(error: Exception, exit_code: int) -> int:
    with suppress(OSError):  # whoever reads may be gone
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        print(f"sdscratch: {error}", file=sys.stderr)
    return exit_code


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(VERBS))
    elif words[0] == "help":
        _dispatch([*words[1:], "--help"])
    elif words[0] == "--version":
        print(__version__)
    elif (name := " ".join(words[:2])) in VERBS:
        _run(name, words[2:])
    elif (name := words[0]) in VERBS:
        _run(name, words[1:])
    elif family := {name: verb for name, verb in VERBS.items() if name.startswith(words[0] + " ")}:
        if words[1:2] in ([], ["-h"], ["--help"]):
            print(_overview(family))
        else:
            raise ConfigError(f"there is no verb {' '.join(words[:2])!r}{_nearest(' '.join(words[:2]), family)}")
    else:
        raise ConfigError(f"there is no verb {words[0]!r}{_nearest(words[0], VERBS)}")


def _nearest(word: str, verbs: dict[str, Verb]) -> str:
    from sdscratch.config.words import did_you_mean

    by_last_word = {name.split()[-1]: name for name in verbs}
    return did_you_mean(by_last_word.get(word, word), verbs) or f"; there are: {', '.join(verbs)}"


def _overview(verbs: dict[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    return "\n".join(
        [
            "usage: sdscratch VERB [key=value ...]",
            "",
            *lines,
            "",
            "`sdscratch VERB --help` shows examples, and every key.",
        ]
    )


def _run(name: str, words: list[str]) -> None:
    from sdscratch.doctor.versions import refuse_malicious

    refuse_malicious()
    verb = VERBS[name]
    if verb.config is None:
        _run_on_a_run(name, verb, words)
        return
    options = _parser(name).parse_intermixed_args(words)

    from sdscratch import config

    overrides = config.quoted(verb.config, _with_names(options.overrides, verb.named))
    if options.config_dir:
        overrides.append(_search_in(options.config_dir))
        if verb.config == "curriculum":  # its phases are composed apart
            overrides.append(f"config_dir={config.literal(options.config_dir)}")
    if options.help:
        print(_help(name, verb, overrides))
    elif options.info:
        print("\n".join(f"{file}: {key}" for file, key in config.config_files(verb.config, overrides)))
    elif options.cfg:
        print(config.to_yaml(config.compose(verb.config, overrides), resolve=options.resolve), end="")
    elif options.multirun:
        if "RANK" in os.environ:
            raise ConfigError("-m starts the runs itself, each on all its devices: call it without torchrun")
        from sdscratch.commands.sweep import sweep

        sweep(verb.module, verb.config, overrides)
    else:
        cfg = config.compose(verb.config, overrides)
        if name != "doctor":  # it fills in what a run would have to say
            _check(name, verb, cfg)
        import_module(f"sdscratch.commands.{verb.module}").run(cfg)


def _with_names(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Plain words as values of `names`, in that order; overrides as they are."""
    left = iter(names)
    return [word if "=" in word or word.startswith("~") else f"{next(left, '')}={word}".lstrip("=") for word in words]


def _check(name: str, verb: Verb, cfg: DictConfig) -> None:
    """Raise ConfigError where the configuration does not fit, with a whole command line where it lacks something."""
    from sdscratch.config import check_config, missing_keys

    try:
        check_config(cfg)
    except ConfigError as error:
        if not missing_keys(cfg):
            raise
        advice = f"for example: {verb.examples[0]}\nall choices and keys: sdscratch {name} --help"
        raise ConfigError(f"{error}\n{advice}") from error


def _run_on_a_run(name: str, verb: Verb, words: list[str]) -> None:
    if "-h" in words or "--help" in words:
        print(_help(name, verb, []))
    elif not words or words[0].startswith("-") or "=" in words[0]:
        raise ConfigError(f"{name} needs a run, as in `{verb.examples[0]}`")
    else:
        import_module(f"sdscratch.commands.{verb.module}").run(words[0], words[1:])


def _search_in(folder: str) -> str:
    """The override that lets Hydra find configs in another folder too."""
    from sdscratch.config import literal

    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    return f"hydra.searchpath=[{literal('file://' + str(Path(folder).resolve()))}]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(name: str) -> _Parser:
    parser = _Parser(prog=f"sdscratch {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-i", "--info", choices=["defaults"])
    parser.add_argument("--config-dir")
    return parser


FLAGS = """\
  -m                   run once for each combination of comma-separated values: optimizer.lr=1.0e-4,2.0e-4
  --cfg job            print the configuration and stop; with --resolve, with interpolations followed
  --info defaults      print the files that make the configuration, and the key that each goes to
  --config-dir FOLDER  look for phases, experiments and other options there too"""


def _help(name: str, verb: Verb, overrides: list[str]) -> str:
    sections = [f"usage: sdscratch {name} {verb.arguments}", verb.help]
    sections.append("\n".join(["Examples:", *(f"  {example}" for example in verb.examples)]))
    if verb.about_them:
        sections.append(verb.about_them)
    if verb.config is not None:
        from sdscratch.config import compose, config_groups, to_yaml

        if groups := config_groups(verb.config, overrides):
            lines = [f"  {key}: {_marked(group)}" for key, group in groups.items() if group.options]
            sections.append("\n".join(["Choose an option of a group, as in group=option:", *lines]))
        yaml = to_yaml(compose(verb.config, overrides), resolve=False)
        sections.append(
            "Set any key; ??? stands for what has to be set:\n"
            + "".join(f"  {line}\n" for line in yaml.splitlines()).rstrip()
        )
        sections.append(f"Flags:\n{FLAGS}")
    return "\n\n".join(sections)


def _marked(group: Group) -> str:
    return " ".join(f"[{option}]" if option == group.chosen else option for option in group.options)

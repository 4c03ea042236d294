"""A wrong configuration is refused in one screen, at once, whatever is wrong with it; never by a traceback.

150 mutations of the shipped configurations in CI, 1,000 by `make faults`; of those that pass the check some are trained.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from omegaconf import DictConfig, OmegaConf
from tiny import SMALLER

from sdscratch.cli import main
from sdscratch.config import check_config, compose, config_dir, config_groups
from sdscratch.errors import ConfigError

LONG = os.environ.get("SDS_FAULTS") == "long"
MUTATIONS, TRAINED = (1000, 60) if LONG else (150, 6)
EXPERIMENTS = sorted(path.stem for path in (config_dir() / "experiment").glob("*.yaml"))
UNSET = ("name=x", "max_steps=3", "global_batch_size=4", "dataset.path=nowhere")
"""What experiments set themselves, and a bare stage leaves open."""

VALUES = [
    *["-1", "0", "1", "3", "0.5", "-0.5", "1e-4", "1.0e99", "nan", "inf", "-inf", "9999999999999999999999", "007", "0x1f"],
    *["null", "true", "false", "yes", "abc", "''", "' '", "'1e-4'", "'null'", "ünïcode", "\\n", "a" * 3000],
    *["[]", "[1,2]", "[[1]]", "[a,null]", "{}", "{a:1}", "{_target_: torch.optim.SGD}", "{_target_: os.system}", "[{a:[1]}]"],
    *["${seed}", "${no}", "${no.such.key}", "${oc.env:NO_SUCH}", "${oc.env:HOME}", "${no:1}", "${${seed}}", "${name}", "???"],
    *["a,b", "range(1,3)", "glob(*)", "int(3)", "[", "{", "(", "'", '"', "a=b", "\\", "$", "%", "#", ":"],
    *["a: b", "*", "&x", "!!x"],
]  # fmt: skip
ODD_WORDS = [
    *["=", "==", "=3", ".=3", "a.=3", ".a=3", "seed", "seed=", "=seed", "+", "++", "~", "~~seed", "+=3", "++seed", "~seed=9"],
    *["model@x=unet_tiny", "model@model=unet_tiny", "/model=unet_tiny", "model/=unet_tiny", "model=unet_tiny,unet_sd1x"],
    *["hydra.run.dir=x", "hydra/launcher=basic", "hydra/launcher=no", "hydra=no", "+hydra.x=1", "hydra.mode=MULTIRUN"],
    *["_target_=os.system", "+_target_=os.system", "optimizer._target_=null", "optimizer._partial_=false", "defaults=[]"],
    *["stage=", "stage=null", "~stage", "~optimizer", "~dataset", "~trainer", "~callbacks", "~logger", "~paths", "~hydra"],
    *["stage=clip,", "experiment=tiny,tiny", "+experiment=tiny", "experiment=[tiny,no]", "debug=smoke", "debug=[smoke]"],
    *["-x", "--", "seed 3", "seed:3", "seed=3=4", "[seed]=3", "seed[0]=3", "callbacks[metrics]=3", "'seed'=3", "\x00=1"],
]  # fmt: skip


def keys(node: DictConfig, prefix: str = "") -> Iterator[str]:
    for name in node:
        yield f"{prefix}{name}"
        if not OmegaConf.is_missing(node, name) and isinstance(value := node._get_node(name), DictConfig):
            yield from keys(value, f"{prefix}{name}.")


class Mutations:
    """Draws command lines that differ from a good one by a slip, each from its own number."""

    def __init__(self) -> None:
        self.bases = {name: [*UNSET[3:], f"experiment={name}"] for name in EXPERIMENTS}
        self.bases |= {stage: [*UNSET, f"stage={stage}"] for stage in ("diffusion", "autoencoder", "clip")}
        self.keys = {name: sorted(keys(compose("train", words))) for name, words in self.bases.items()}
        self.groups = config_groups("train")

    def draw(self, number: int, folder: Path) -> list[str]:
        """Words after `sdscratch train`; a mutated file of ours is put into `folder`."""
        draw = random.Random(number)
        base = draw.choice(sorted(self.bases))
        words, key, value = list(self.bases[base]), draw.choice(self.keys[base]), draw.choice(VALUES)
        kind = number % 8
        if kind == 0:
            words.append(f"{misspelt(key, draw)}={value}")
        elif kind in (1, 2):
            words.append(f"{key}={value}")
        elif kind == 3:
            words.append(
                f"{draw.choice(['+', '++', '~'])}{draw.choice([key, misspelt(key, draw)])}={value}".replace("~", "~")
            )
            words += [f"~{key}"] if draw.random() < 0.3 else []
        elif kind == 4:
            group = draw.choice(sorted(self.groups))
            options = [*self.groups[group].options, "no", "", "null", "tiny"]
            option = draw.choice(options)
            words.append(f"{group}={misspelt(option, draw) if draw.random() < 0.5 else option}")
        elif kind == 5:
            words.append(draw.choice(ODD_WORDS))
        else:
            words = [*words[:-1], *mutated_file(self.bases[base][-1], draw, folder)]
        return words


def misspelt(word: str, draw: random.Random) -> str:
    if not word:
        return "x"
    at = draw.randrange(len(word))
    change = draw.choice(["", word[at] * 2, "x", "-", ".", " ", word[at].swapcase(), "ß"])
    return word[:at] + change + word[at + 1 :]


def mutated_file(choice: str, draw: random.Random, folder: Path) -> list[str]:
    """A copy of the shipped file of that choice with one slip of the keyboard, as an experiment of the user's own."""
    group, _, option = choice.partition("=")
    data = bytearray((config_dir() / group / f"{option}.yaml").read_bytes())
    lines = data.decode().split("\n")
    at, row = draw.randrange(len(data)), draw.randrange(len(lines))
    slip = draw.randrange(6)
    if slip < 2:
        data[at : at + 1] = draw.choice(
            [b"", b"x", b":", b" ", b"\n", b"{", b"3", b"$", b"'", b"\t", b"\xff", b"\x00", b"-"]
        )
    elif slip == 2:
        data = bytearray("\n".join(lines[:row] + lines[row + 1 :]).encode())
    elif slip == 3:
        data = bytearray("\n".join([*lines[:row], " " + lines[row], *lines[row + 1 :]]).encode())
    elif slip == 4:
        data = bytearray("\n".join([*lines[: row + 1], *lines[row:]]).encode())
    else:
        data = data[:at]
    (folder / group).mkdir(parents=True, exist_ok=True)
    (folder / group / "mine.yaml").write_bytes(bytes(data))
    return [f"hydra.searchpath=['file://{folder}']", f"{group}=mine"]


@pytest.fixture(scope="module")
def mutations() -> Mutations:
    return Mutations()


def test_mutated_configurations_are_refused_in_one_screen_or_valid_and_soon(mutations, tmp_path):
    valid, whole, checks, tracebacks = 0, list[float](), list[float](), list[str]()
    for number in range(MUTATIONS):
        words = mutations.draw(number, tmp_path / str(number))
        start = time.process_time()
        try:
            cfg = compose("train", words)
            middle = time.process_time()
            check_config(cfg)
            valid += 1
        except ConfigError as error:
            assert 0 < len(str(error)) < 6000 and "Traceback" not in str(error), words
        except Exception as error:
            tracebacks.append(f"mutation {number}, {words}: {type(error).__name__}: {error}")
        else:
            checks.append(time.process_time() - middle)
            whole.append(time.process_time() - start)
        shutil.rmtree(tmp_path / str(number), ignore_errors=True)
    print(f"{MUTATIONS} mutations: {valid} valid; {median(whole):.3f} s, of which the check {median(checks):.3f} s")
    assert "\n".join(tracebacks) == ""
    assert MUTATIONS / 20 < valid < MUTATIONS / 2
    assert median(checks) < 0.05
    assert median(whole) < 0.5


NUMBERS = [
    *["-1", "0", "1", "2", "3", "7", "0.5", "1.0e99", "1.0e-30", "nan", "inf", "97"],
    *["null", "''", "abc", "[]", "[1]", "true"],
]  # fmt: skip


def test_what_passes_the_check_is_trained_or_refused_in_one_line(tiny_data, tmp_path, capsys):
    """Values that fit their types may still make no sense; the objects themselves say so when they are built."""
    draw = random.Random(1)
    base = [
        "experiment=tiny",
        f"paths.runs={tmp_path}",
        f"paths.data={tiny_data}",
        "threads=1",
        *SMALLER,
        "max_steps=1",
    ]
    known = [
        key
        for key in sorted(keys(compose("train", base)))
        if not key.startswith(("paths", "trainer.max", "trainer.devices", "trainer.num_nodes", "threads"))
    ]
    tried, trained, tracebacks = 0, 0, list[str]()
    while tried < TRAINED:
        words = [*base, f"name=run{tried}", f"{draw.choice(known)}={draw.choice(NUMBERS)}"]
        try:
            check_config(compose("train", words))
        except ConfigError:
            continue
        if "dataset." in words[-1] or "max_steps" in words[-1]:  # others would be drawn, or trained for long
            continue
        tried += 1
        try:
            code = main(["train", *words])
        except Exception as error:
            tracebacks.append(f"{words[-1]}: {type(error).__name__}: {error}")
            continue
        said = capsys.readouterr().err
        if code not in (0, 2) or "Traceback" in said:
            tracebacks.append(f"{words[-1]}: exit code {code}: {said}")
        trained += code == 0
    assert "\n".join(tracebacks) == ""
    assert trained > 0

"""Every command that the documentation shows is one that the configuration takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from sdscratch.cli import VERBS, with_names
from sdscratch.commands.data_folders import folders_of
from sdscratch.config import check_config, compose, config_dir, quoted
from sdscratch.errors import ConfigError

CHECKOUT = Path(__file__).parents[2]
DATA = CHECKOUT / "docs" / "data.md"
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `sdscratch VERB ...` in a page's blocks of commands, after `sdscratch`."""
    for block in (block for language, block in BLOCK.findall(text) if language in ("", "sh")):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("sdscratch "):
                yield shlex.split(line, comments=True)[1:]


def shown() -> Iterator[object]:
    for page in PAGES:
        for words in commands(page.read_text()):
            yield pytest.param(words, id=f"{page.name}: {' '.join(words)}")


def problem(words: list[str]) -> str:
    """What is wrong with a command, in a line; "" if nothing is."""
    name = " ".join(words[:2]) if " ".join(words[:2]) in VERBS else words[0]
    if name not in VERBS:
        return f"there is no verb {name}"
    verb, rest = VERBS[name], words[len(name.split()) :]
    overrides = [word for word in with_names(rest, verb.named) if "=" in word]
    if verb.config is None or {"-m", "--help"} & {*words}:
        return ""  # these take runs and lists of values, not one configuration
    try:
        check_config(compose(verb.config, quoted(verb.config, overrides)))
    except ConfigError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("words", [*shown()])
def test_a_command_that_is_shown_fits_the_configuration(words, monkeypatch):
    monkeypatch.chdir(CHECKOUT)
    assert problem(words) == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data encode path=a out=b", "model: required, but not set"),
        ("data filter rules=laion_brod path=a out=b", "laion_brod"),
        ("data pack kind=coco path=a out=b per_identity=6", "per_identity"),
        ("data wash path=a", "there is no verb"),
    ],
)
def test_a_command_that_does_not_fit_would_be_found(words, said):
    assert said in problem(words.split())


def test_every_data_verb_is_shown():
    shown = {" ".join(words[:2]) for words in commands(DATA.read_text())}
    assert {name for name in VERBS if name.startswith("data ")} <= shown


# Each phase's data


@pytest.fixture(scope="module")
def steps() -> list[dict[str, str]]:
    """The commands that make the phases' data, in their sequence, as key -> value; `verb` is one of the keys."""
    section = DATA.read_text().partition("## Each phase's data\n")[2].partition("\n## ")[0]
    found = [(words[1], [word.partition("=") for word in words[2:]]) for words in commands(section)]
    return [{"verb": verb, **{key: value for key, _, value in overrides}} for verb, overrides in found]


def test_each_command_reads_what_one_before_it_has_written(steps):
    there = {"data/raw/vggface2"}  # which everyone has to find
    for step in steps:
        if step["verb"] == "shapes":
            there |= {f"{step['out']}/train", f"{step['out']}/val"}
        elif step.get("kind") == "webdataset":
            there.add(step["path"])  # of links to shards written before
        elif "path" in step:
            assert any(Path(step["path"]).is_relative_to(folder) for folder in there), step
        there.add(step.get("out", step.get("path", "")))


def test_every_folder_that_a_phase_or_stage_reads_is_made(steps):
    made = {Path(step["out"]) for step in steps if "out" in step}
    phases = [file.stem for file in (config_dir() / "phase").glob("*.yaml")]
    assert len(phases) == 10
    for phase in phases:
        dataset = compose("train", [f"phase={phase}", "paths.data=data"]).dataset
        assert {*folders_of(OmegaConf.to_container(dataset, resolve=True))} <= made, phase


def test_the_latents_are_of_the_size_that_the_phases_expect(steps):
    expected = str(compose("train", ["phase=p1_laion_broad"]).dataset.resolution)
    assert {step["resolution"] for step in steps if step["verb"] == "encode"} == {expected}


def test_prompts_are_chosen_by_the_rules_that_the_filter_applies(steps):
    (where,) = [step["where"] for step in steps if step["verb"] == "select" and "synthetic" in step["out"]]
    rules = compose("data/filter", ["rules=synthetic"]).rules
    alternatives = re.search(r"\(([\w |]+)\)\\b", where)
    assert alternatives and alternatives[1].split("|") == [*rules.words.explicit, *rules.words.famous]
    assert f"length(captions[1]) >= {rules.min_characters} " in where
    assert f"len(string_split(captions[1], ' ')) >= {rules.min_words} " in where

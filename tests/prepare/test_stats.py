from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_shards import encode, latent_samples, picture

from sdscratch.cli import main
from sdscratch.data.shards import write_shards
from sdscratch.prepare.stats.page import CONTEXT, summary, write_page
from sdscratch.prepare.stats.stats import Stats, collect


def sample(number: int, size: tuple[int, int], *captions: str, source: str = "here"):
    record = {"captions": captions, "source": source, "licence": "CC0-1.0"}
    return f"{number:03d}", {"png": encode(picture(number, size)), "json": json.dumps(record).encode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    samples = [
        sample(0, (40, 20), "a dog and a dog", "the dog runs"),
        sample(1, (20, 40), "A Dog, sitting"),
        sample(2, (30, 30), "two cats", source="there"),
        ("003", {"png": b"no picture", "txt": b"nothing"}),
        ("004", {"png": encode(picture(4, (16, 16))), "txt": b" "}),
    ]
    write_shards(tmp_path / "shards", samples, {}, shard_size=2)
    return tmp_path / "shards"


def words(captions: list[str]) -> list[int]:
    return [len(caption.split()) + 2 for caption in captions]


@pytest.mark.parametrize("workers", [0, 1])
def test_every_sample_is_counted_once(folder, workers):
    stats = collect(folder, words, workers=workers)
    assert stats.samples == 5 and stats.captions == {2: 1, 1: 3, 0: 1}
    assert stats.sizes == {(40, 20): 1, (20, 40): 1, (30, 30): 1, (16, 16): 1}
    assert stats.words == {5: 1, 3: 2, 2: 1, 1: 1} and stats.tokens == {7: 1, 5: 2, 4: 1, 3: 1}
    assert stats.concepts["dog"] == 2, "counted once a sample, whatever its case"
    assert "and" not in stats.concepts and stats.concepts["cats"] == 1
    assert stats.sources == {"here": 2, "there": 1, "unknown": 2}
    assert stats.bad == {"the picture cannot be read": 1}


def test_the_share_of_captions_that_are_cut_off_is_said(folder):
    stats = collect(folder, words)
    assert stats.truncated(5) == 1 / 5 and stats.truncated(3) == 4 / 5 and stats.truncated(CONTEXT) == 0
    assert summary(stats)["captions cut off"] == 0
    assert "tokens in a caption" not in summary(collect(folder))


def test_latents_are_measured(tmp_path):
    write_shards(tmp_path / "latents", latent_samples(50), {})
    numbers = summary(collect(tmp_path / "latents"))
    assert len(numbers["latents"]["mean"]) == 4 and np.isfinite(numbers["latents"]["std"])


def test_the_page_and_its_pictures_are_written_and_say_what_was_counted(folder, tmp_path):
    page = write_page(tmp_path / "page", "a <title>", collect(folder, words), [picture(0), picture(1)], ["one", "two"])
    text = page.read_text()
    assert "a &lt;title&gt;" in text and "CC0-1.0" in text and "the picture cannot be read" in text and "0.00 %" in text
    for name in ("overview.png", "contact.png"):
        assert name in text and Image.open(page.parent / name).width > 200
    assert json.loads((page.parent / "stats.json").read_text())["shorter side"]["most"] == 30


def test_a_folder_of_which_nothing_is_known_makes_a_page_too(tmp_path):
    assert write_page(tmp_path, "empty", Stats(), [], []).is_file()


def test_the_verb_writes_beside_the_folder(folder, capsys):
    assert main(["data", "stats", f"path={folder}"]) == 0
    page = folder.with_name("shards-stats") / "report.html"
    assert page.is_file() and (page.parent / "contact.png").is_file()
    assert f"{folder}: 5 samples, 5 captions; {page}" in capsys.readouterr().out
    assert main(["data", "stats", f"path={folder}", f"model={folder}"]) == 2
    assert "neither a tokenizer nor a VAE" in capsys.readouterr().err


@pytest.mark.parametrize(("out", "code"), [("", 2), ("{file}/x", 4)])
def test_a_place_that_is_none_is_refused_in_one_line(folder, tmp_path, capsys, out, code):
    (tmp_path / "file").write_text("a file")
    assert main(["data", "stats", f"path={folder}", f"out={out.format(file=tmp_path / 'file')}"]) == code
    assert capsys.readouterr().err.count("\n") == 1

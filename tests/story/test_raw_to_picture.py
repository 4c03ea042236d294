"""From rows of metadata to a picture, with real photographs: every step of the data pipeline, as a user calls it."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import duckdb
import numpy as np
import pytest
from laion_rows import write
from PIL import Image
from web_server import WebServer

from sdscratch.cli import main
from sdscratch.data import Manifest, ShardIndex
from sdscratch.data.captions import record_of
from sdscratch.data.shards import DROPPED, Members
from sdscratch.run_folder import RunFolder

pytestmark = [
    pytest.mark.xdist_group("raw_to_picture"),  # the way is long enough to be gone once
    pytest.mark.filterwarnings("ignore:__array__ implementation"),  # inside diffusers
]

PHOTOGRAPHS = 80
SMALL = ("trainer=cpu", "logger=none", "threads=1", "callbacks.previews=null", "callbacks.plots=null")
PRIVATE = ("manners.allow_private=true", "manners.backoff=0.01", "manners.retries=1")  # the server is on this machine


class Story(NamedTuple):
    """Where everything lies, and the rows that went in."""

    root: Path
    rows: list[dict[str, Any]]

    @property
    def funnel(self) -> dict[str, Any]:
        return json.loads((self.root / "rows" / "funnel.json").read_text())

    @property
    def kept(self) -> list[str]:
        """The keys of the rows that the rules kept, sorted."""
        rows = duckdb.read_parquet(str(self.root / "rows" / "rows.parquet"))
        return [key for (key,) in rows.project("key").order("key").fetchall()]


def photographs() -> list[tuple[bytes, str, int, int]]:
    """Real ones, 128 px and more, with different captions that a filter of captions' length keeps."""
    pack = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[3] / "shared" / "data"))
    if not (folder := pack / "captions-real").is_dir():
        pytest.skip(f"no captions-real in {pack}: set SDSCRATCH_DATA_PACK")
    index = ShardIndex.open(folder)
    found = dict[str, tuple[bytes, str, int, int]]()
    for n in range(len(index)):
        members = index.read(n)
        record = record_of(members)
        caption, width, height = record["caption"].strip(), record["width"], record["height"]
        if 20 <= len(caption) <= 300 and 0.5 <= width / height <= 2:
            found.setdefault(caption.lower(), (members["jpg"], caption, width, height))
        if len(found) == PHOTOGRAPHS:
            break
    return [*found.values()]


def collection(pictures: list[tuple[bytes, str, int, int]], web: str) -> list[dict[str, Any]]:
    """Rows with LAION's columns: the photographs; after them those that must fall, to a rule or on the web."""

    def row(n: int, **other: Any) -> dict[str, Any]:
        _, caption, width, height = pictures[n]
        scores = {"similarity": 0.3, "punsafe": 0.01, "pwatermark": 0.1, "AESTHETIC_SCORE": 6.5 + n % 20 / 10}
        return {"URL": f"{web}/img/{n}.jpg", "TEXT": caption, "WIDTH": width, "HEIGHT": height, **scores, **other}

    def decoy(name: str, **other: Any) -> dict[str, Any]:
        return row(0, **{"URL": f"{web}/img/{name}", "TEXT": f"a picture that is here as a decoy, {name}", **other})

    to_rules = [
        decoy("ugly", AESTHETIC_SCORE=6.4),
        decoy("unjudged", AESTHETIC_SCORE=None),
        decoy("unlike", similarity=0.2),
        decoy("stamp", WIDTH=100),
        decoy("banner", WIDTH=1000, HEIGHT=200),
        decoy("tower", WIDTH=200, HEIGHT=1000),
        decoy("marked", pwatermark=0.9),
        decoy("unsafe", punsafe=0.9),
        decoy("laconic", TEXT="a decoy"),
        decoy("endless", TEXT="a very long caption " * 20),
        decoy("no address", URL="ftp://a.org/1.jpg"),
    ]
    again = [  # which of two equals is kept hangs on the address, and so on the server's port
        row(1, TEXT="the picture of another row, with another caption"),
        row(2, URL=f"{web}/img/{ECHO}", TEXT=pictures[2][1].upper()),
    ]
    on_the_web = [
        decoy("gone", URL=f"{web}/status/404/gone"),
        decoy("removed", URL=f"{web}/status/410/removed"),
        decoy("not ours", URL=f"{web}/robots/noai"),
        decoy("page", URL=f"{web}/html/page"),
        decoy("cut", URL=f"{web}/half/cut"),
        decoy("thumbnail.png", AESTHETIC_SCORE=9.9),
    ]
    return [row(n) for n in range(len(pictures))] + to_rules + again + on_the_web


ECHO = "2-again.jpg"  # the same picture
FELL_TO_RULES = {
    "address": 1, "min_aesthetic": 2, "min_similarity": 1, "min_side": 1, "min_aspect": 1, "max_aspect": 1,
    "watermark_below": 1, "unsafe_below": 1, "min_characters": 1, "max_characters": 1, "unique_url": 1, "unique_caption": 1,
}  # fmt: skip
FELL_ON_THE_WEB = {"404": 1, "410": 1, "opted out": 1, "wrong type": 1, "not decodable": 1, "too small": 1}


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    root, pictures, capture = tmp_path_factory.mktemp("story"), photographs(), pytest.MonkeyPatch()
    capture.setenv("SDSCRATCH_CACHE", str(root / "cache"))

    def run(*words: str) -> None:
        assert main(words) == 0, words

    def train(name: str, *words: str) -> None:
        run(
            "train",
            f"name={name}",
            f"paths.runs={root / 'runs'}",
            *SMALL,
            "dataset=shards",
            "dataset.resolution=32",
            *words,
        )

    with WebServer(served(pictures)) as server:
        rows = collection(pictures, server.url)
        for number in (0, 1):  # as LAION comes: in several files
            write(root / "raw" / f"part-{number}.parquet", rows[number::2])
        run("data", "filter", "rules=laion_broad", "rules.min_side=128", f"path={root / 'raw'}", f"out={root / 'rows'}")
        places = (
            f"path={root / 'rows'}",
            f"out={root / 'images'}",
            "pictures.size=64",
            "pictures.min_size=64",
            "shard_size=20",
        )
        run("data", "download", *places, "source=laion", *PRIVATE)
    run("data", "verify", f"path={root / 'images'}")

    images = (
        f"dataset.path={root / 'images'}",
        "dataset.holdout=0.2",
        "global_batch_size=4",
        "lr_schedule.warmup_steps=1",
    )
    train("vae", "stage=autoencoder", "vae=kl_tiny", *images, "max_steps=20")
    train("clip", "stage=clip", "text_encoder=clip_tiny", *images, "max_steps=5")
    places = (f"path={root / 'images'}", f"out={root / 'latents'}", "resolution=32")
    run("data", "encode", *places, f"model={root / 'runs' / 'vae'}", f"text={root / 'runs' / 'clip'}")
    run("data", "verify", f"path={root / 'latents'}")
    run("data", "select", f"path={root / 'latents'}", f"out={root / 'refined'}", "where=aesthetic >= 7.5")

    networks = ["vae=trained", f"vae.path={root / 'runs' / 'vae' / 'model'}"]
    networks += ["text_encoder=trained", f"text_encoder.path={root / 'runs' / 'clip' / 'model'}"]
    tiny = ("experiment=tiny", "~dataset.count", "~dataset.val_count", *networks, "max_steps=50")
    train("unet", *tiny, f"dataset.path={root / 'refined'}", "dataset.holdout=0.2")
    run("sample", f"model={root / 'runs' / 'unet'}", f"prompt={pictures[0][1]}", f"out={root / 'drawn'}", "device=cpu")
    yield Story(root, rows)
    capture.undo()


def served(pictures: list[tuple[bytes, str, int, int]]) -> Mapping[str, tuple[str, bytes]]:
    Image.new("RGB", (60, 60), "red").save(thumbnail := BytesIO(), "PNG")
    files = {f"{n}.jpg": ("image/jpeg", data) for n, (data, *_) in enumerate(pictures)}
    return files | {ECHO: files["2.jpg"], "thumbnail.png": ("image/png", thumbnail.getvalue())}


def samples(folder: Path) -> dict[str, tuple[Members, dict[str, Any]]]:
    """Key -> members, and the record among them."""
    index = ShardIndex.open(folder)
    read = ((index.key(n), index.read(n)) for n in range(len(index)))
    return {key: (members, record_of(members)) for key, members in read}


def test_every_row_is_kept_or_fell_to_the_rule_that_it_breaks(story):
    funnel = story.funnel
    assert {rule: count for rule, count in funnel["dropped"].items() if count} == FELL_TO_RULES
    assert funnel["rows"] == len(story.rows) == funnel["kept"] + sum(FELL_TO_RULES.values())
    assert len(story.kept) == funnel["kept"]


def test_every_row_that_was_kept_is_a_picture_or_is_named_with_the_reason(story):
    manifest = Manifest.read(story.root / "images")
    assert manifest is not None and manifest.dropped == FELL_ON_THE_WEB
    assert manifest.total == PHOTOGRAPHS and manifest.total + sum(FELL_ON_THE_WEB.values()) == story.funnel["kept"]
    named = [json.loads(line) for line in (story.root / "images" / DROPPED).read_text().splitlines()]
    assert Counter(row["reason"] for row in named) == FELL_ON_THE_WEB
    assert sorted([*samples(story.root / "images"), *(row["key"] for row in named)]) == story.kept


def test_a_picture_is_that_of_its_row_with_its_caption_and_scores(story):
    seen = set[str]()
    for members, record in samples(story.root / "images").values():
        (row,) = (row for row in story.rows if row["URL"] == record["url"] and [row["TEXT"]] == record["captions"])
        assert record["source"] == "laion" and record["aesthetic"] == pytest.approx(row["AESTHETIC_SCORE"])
        assert (record["original_width"], record["original_height"]) == (row["WIDTH"], row["HEIGHT"])
        picture = Image.open(BytesIO(members["jpg"]))
        assert picture.size == (record["width"], record["height"]) and min(picture.size) == 64
        assert picture.width / picture.height == pytest.approx(row["WIDTH"] / row["HEIGHT"], rel=0.02)
        seen.add(row["URL"].rpartition("/")[2].replace(ECHO, "2.jpg"))
    assert seen == {f"{n}.jpg" for n in range(PHOTOGRAPHS)}


def test_the_latents_are_those_of_all_pictures_and_keep_their_records(story):
    images, latents = samples(story.root / "images"), samples(story.root / "latents")
    assert images.keys() == latents.keys()
    for key, (members, record) in latents.items():
        assert record == images[key][1] and set(members) == {"latent.npy", "text.npy", "txt", "json"}


def test_the_refined_part_is_what_its_condition_says(story):
    refined, all_of_them = samples(story.root / "refined"), samples(story.root / "latents")
    assert refined.keys() == {key for key, (_, record) in all_of_them.items() if record["aesthetic"] >= 7.5}
    assert len(refined) == PHOTOGRAPHS // 2


def test_training_has_seen_the_refined_part_and_held_some_of_it_out(story):
    run = RunFolder(story.root / "runs" / "unet")
    assert run.state()["status"] == "done" and run.state()["step"] == 50 and run.state()["samples_seen"] == 200
    data = json.loads((run.model_folder / "sdscratch.json").read_text())["data"]
    train, val = ShardIndex.open(story.root / "refined").split(0.2)
    assert (data["samples"], data["fingerprint"]) == (len(train), train.fingerprint)
    assert len(train) + len(val) == PHOTOGRAPHS // 2 and len(val)


def test_training_has_learnt_something(story):
    losses = [
        row["train/loss"] for row in RunFolder(story.root / "runs" / "unet").read_metrics() if "train/loss" in row
    ]
    assert len(losses) == 50 and sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_a_picture_comes_out(story):
    (path,) = (story.root / "drawn").iterdir()
    picture = Image.open(path)
    assert picture.size == (32, 32) and len(np.unique(np.asarray(picture))) > 20

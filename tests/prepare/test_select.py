"""Parts of folders of shards, chosen by SQL on their records."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from sdscratch.data import DataModule, ShardDataset
from sdscratch.data.index import ShardIndex
from sdscratch.data.latents import pack
from sdscratch.data.order import Order
from sdscratch.data.selection import ROWS, SELECTION
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare import select as selecting
from sdscratch.prepare.select import select


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))


def record(n: int) -> dict:
    fields = {
        "caption": "another field",
        "captions": [f"a dog {n}", f"a cat {n}"],
        "aesthetic": n / 2,
        "source": "test",
    }
    return fields | ({"watermark": n / 100, "licence": "CC0-1.0"} if n % 2 else {})


def write(folder: Path, records: list[bytes]) -> Path:
    moments = pack(torch.zeros(1, 2, 4, 2, 2))
    samples = ((f"{n:06d}", {"latent.npy": moments, "json": data}) for n, data in enumerate(records))
    write_shards(folder, samples, {"vae": "abc", "resolution": 16}, shard_size=7)
    return folder


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    """Four shards of 7, 7, 7 and 2 latents."""
    return write(tmp_path / "latents", [json.dumps(record(n)).encode() for n in range(23)])


def keys(folder: Path) -> list[int]:
    index = ShardIndex.open(folder)
    return [int(index.key(n)) for n in range(len(index))]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("aesthetic >= 7.5", list(range(15, 23))),
        ("watermark < 0.05", [1, 3]),  # the others say nothing of it, and so do not fit
        ("coalesce(watermark, 0) < 0.05 and aesthetic < 3", [0, 1, 2, 3, 4]),
        ("list_contains(captions, 'a dog 7') or captions[2] = 'a cat 9'", [7, 9]),
        ("len(list_filter(captions, lambda c: c ilike '%CAT 2%')) > 0", [2, 20, 21, 22]),
        ("key in ('000003', '000011')", [3, 11]),
        ("shard = '00003.tar'", [21, 22]),
        ("aesthetic > (select avg(aesthetic) + 5 from samples)", [22]),
        ("true -- and so on", list(range(23))),
    ],
)
def test_a_selection_opens_as_those_samples_that_fit(where, expected, latents, tmp_path):
    selection = select(latents, tmp_path / "out", where)
    assert keys(tmp_path / "out") == expected and len(selection.rows) == len(expected) and selection.total == 23
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [ROWS, SELECTION]


def test_it_is_read_like_any_folder_with_a_fingerprint_of_its_own(latents, tmp_path):
    select(latents, tmp_path / "a", "aesthetic >= 7.5")
    select(latents, tmp_path / "b", "aesthetic < 7.5")
    select(latents, tmp_path / "c", "aesthetic > 7.4")
    whole, a, b, c = (ShardIndex.open(folder) for folder in (latents, *(tmp_path / name for name in "abc")))
    assert len({whole.fingerprint, a.fingerprint, b.fingerprint}) == 3 and a.fingerprint == c.fingerprint
    assert (a.kind, a.made_by) == ("latents", whole.made_by) and a.read(0) == whole.read(15)
    train, held_out = a.split(0.5, seed=1)
    assert sorted([*(train.key(n) for n in range(len(train))), *(held_out.key(n) for n in range(len(held_out)))]) == [
        a.key(n) for n in range(len(a))
    ]
    dataset = ShardDataset(a, Order(a.shard_sizes, seed=0), seed=0, resolution=16)
    assert {dataset[position]["key"] for position in range(len(a))} == {a.key(n) for n in range(len(a))}
    assert torch.isfinite(dataset[3]["latents"]).all()


def test_a_selection_of_a_selection_fits_both_conditions_and_names_the_shards(latents, tmp_path):
    select(latents, tmp_path / "a", "aesthetic >= 7.5 or watermark = 0.03")
    select(tmp_path / "a", tmp_path / "deeper/b", "watermark > 0.02")
    assert keys(tmp_path / "deeper/b") == [3, 15, 17, 19, 21]
    shutil.rmtree(tmp_path / "a")
    assert keys(tmp_path / "deeper/b") == [3, 15, 17, 19, 21]


def test_the_same_selection_again_writes_nothing_and_another_is_refused(latents, tmp_path):
    select(latents, tmp_path / "out", "aesthetic >= 7.5")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").iterdir()}
    assert list(select(latents, tmp_path / "out", "aesthetic >= 7.5").rows) == list(range(15, 23))
    with pytest.raises(DataError, match="holds another selection .where aesthetic >= 7.5"):
        select(latents, tmp_path / "out", "aesthetic >= 8")
    with pytest.raises(DataError, match="holds something else"):
        select(latents, latents, "aesthetic >= 8")
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in (tmp_path / "out").iterdir()} == before


def test_shards_and_selection_may_move_together(latents, tmp_path):
    select(latents, tmp_path / "out", "aesthetic >= 7.5")
    fingerprint = ShardIndex.open(tmp_path / "out").fingerprint
    (tmp_path / "elsewhere").mkdir()
    for name in ("latents", "out"):
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    assert ShardIndex.open(tmp_path / "elsewhere/out").fingerprint == fingerprint


def change(latents):
    shutil.rmtree(latents)
    write(latents, [json.dumps(record(n) | {"new": True}).encode() for n in range(23)])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda latents, out: latents.rename(latents.with_name("moved")), "selects from .*latents, where no folder"),
        (lambda latents, out: change(latents), "latents has changed since .*out was selected from it"),
        (lambda latents, out: (latents / "00002.tar").unlink(), "00002.tar is missing"),
        (lambda latents, out: (out / ROWS).unlink(), "is no whole selection"),
        (lambda latents, out: np.save(out / ROWS, np.arange(3)), "rows.npy is damaged"),
        (lambda latents, out: np.save(out / ROWS, np.array([{}], dtype=object)), "is no whole selection"),
        (lambda latents, out: (out / SELECTION).write_text("{"), "selection.json is damaged"),
        (lambda latents, out: (out / SELECTION).write_text('{"format": 2}'), "has format 2"),
        (lambda latents, out: (out / SELECTION).write_text('{"format": 1}'), "is no whole selection"),
        (lambda latents, out: shutil.copytree(out, latents, dirs_exist_ok=True), "where no folder of shards is"),
    ],
)
def test_shards_that_moved_or_changed_and_damaged_selections_are_refused(spoil, said, latents, tmp_path):
    out = tmp_path / "out"
    select(latents, out, "aesthetic >= 7.5")
    spoil(latents, out)
    with pytest.raises(DataError, match=said):
        ShardIndex.open(out)


@pytest.mark.parametrize(
    "where",
    [
        "key in (select column0 from read_csv('/etc/passwd'))",
        "key in (select content from read_text('/etc/passwd'))",
        "key in (select * from '/etc/passwd')",
        "key in (select * from glob('/*'))",
        "key in (select * from sqlite_scan('a', 'b'))",
        "true; copy (select 1) to 'canary'",
        "true) to 'canary' --",
        "key = getenv('HOME')",
        "key in (select * from read_parquet('https://localhost/x.parquet'))",
        "true; attach 'canary'",
        "true; set enable_external_access=true",
        "true; install httpfs",
    ],
)
def test_a_condition_reaches_no_files_and_no_settings(where, latents, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ConfigError, match="^where="):
        select(latents, tmp_path / "out", where)
    after = [path for path in tmp_path.rglob("*") if "index-" not in path.name]
    assert sorted(after) == before


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("aestetic > 5", "aestetic.*The samples have the fields key, shard, captions, .*aesthetic"),
        ("aesthetic >", "Parser Error"),
        ("captions = 'a dog'", "cast"),
        ("sum(aesthetic) > 1", "cannot contain aggregates"),
    ],
)
def test_a_condition_that_cannot_be_understood_is_refused_with_the_fields_there_are(where, said, latents, tmp_path):
    with pytest.raises(ConfigError, match=said):
        select(latents, tmp_path / "out", where)
    assert not (tmp_path / "out").exists()


def test_a_condition_that_nothing_fits_is_refused(latents, tmp_path):
    with pytest.raises(DataError, match="none of the 23 samples .* fits where='aesthetic > 100'"):
        select(latents, tmp_path / "out", "aesthetic > 100")
    assert not (tmp_path / "out").exists()


def test_records_of_any_kind_can_be_asked(tmp_path):
    deep: object = 1
    for _ in range(500):
        deep = [deep]
    awkward = [
        {"captions": "one", "x": 1, "key": "not ours", "shard": 3},
        {"x": "text", "URL": "u", "url": "v", "": 1, "_row": 7, "a b": 2, "it's": 3},
        {"x": float("nan"), "n": float("inf"), "s": "\ud800 half", "z": "nul \0", "big": 10**30},
        {"nest": {"A": 1, "a": 2, "": {}}, "deep": deep},
    ]
    data = [json.dumps(fields).encode() for fields in awkward] + [b"{", b"\xff\xfe", b"[]", b""]
    folder = write(tmp_path / "latents", data)
    select(folder, tmp_path / "a", "captions = ['one'] or URL = 'u' or n is null and s like '%half' or nest.a = 1")
    assert keys(tmp_path / "a") == [0, 1, 2, 3]
    select(folder, tmp_path / "b", "x is null and len(captions) = 0 and key > '000003' and shard = '00000.tar'")
    assert keys(tmp_path / "b") == [4, 5, 6]
    select(folder, tmp_path / "c", '"a b" = 2 and "it\'s" = 3')
    assert keys(tmp_path / "c") == [1]


def test_captions_may_be_in_text_files_and_tars_adopted_or_not(tmp_path):
    write_shards(tmp_path / "images", [(str(n), {"jpg": b"", "txt": f"number {n}".encode()}) for n in range(4)], {})
    (tmp_path / "images/manifest.json").unlink()
    select(tmp_path / "images", tmp_path / "out", "captions[1] = 'number 2'")
    assert keys(tmp_path / "out") == [2]


def test_training_data_come_from_a_selection_like_from_any_folder(latents, tmp_path):
    select(latents, tmp_path / "out", "aesthetic >= 5")
    data = DataModule(str(tmp_path / "out"), resolution=16, global_batch_size=4, seed=0, holdout=0.3)
    train, held_out = data.indexes
    assert held_out is not None and len(train) + len(held_out) == 13 and data.kind == "latents"
    data.require_vae("abc")
    assert all(int(data.train_dataset()[position]["key"]) >= 10 for position in range(20))


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("random() < 0.5", "random[(][)] chooses otherwise each time"),
        ("true or main.RANDOM() < 0.5", "RANDOM[(][)]"),
        ("key < uuid()::VARCHAR", "uuid"),
        ("aesthetic < 3 and current_date > '2020-01-01'", "current_date"),
        ("now() > '2020-01-01'", "now"),
        ("age(TIMESTAMP '2020-01-01') > INTERVAL 1 DAY", "age"),
        ("key in (select key from samples using sample 5)", "a sample"),
        ("len(list_filter(captions, lambda c: c > 'a' and random() > 0.5)) > 0", "random"),
        (" ", "where is empty: expected a condition"),
    ],
)
def test_what_would_choose_otherwise_the_next_time_is_refused(where, said, latents, tmp_path):
    with pytest.raises(ConfigError, match=said):
        select(latents, tmp_path / "out", where)
    assert not (tmp_path / "out").exists()


def test_a_field_may_have_the_name_of_a_word_for_the_time(tmp_path):
    folder = write(tmp_path / "a", [json.dumps({"captions": ["x"], "today": n, "now": n}).encode() for n in range(4)])
    select(folder, tmp_path / "out", "today >= 1 and now < 3 and year(TIMESTAMP '2020-01-01') + 1 - 1 = 2020")
    assert keys(tmp_path / "out") == [1, 2]


def test_of_two_selections_into_one_folder_at_once_the_second_is_refused_and_the_first_stays_whole(
    latents, tmp_path, monkeypatch
):
    def other_first(*arguments):
        monkeypatch.undo()
        select(latents, tmp_path / "out", "aesthetic < 2", tmp_path / "cache")
        return fitting(*arguments)

    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f".{ROWS}.{dead.pid}.tmp").touch()  # which is of no use any more
    fitting = selecting._fitting
    monkeypatch.setattr(selecting, "_fitting", other_first)
    with pytest.raises(DataError, match="holds another selection"):
        select(latents, tmp_path / "out", "aesthetic > 9", tmp_path / "cache")
    assert keys(tmp_path / "out") == [0, 1, 2, 3]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [ROWS, SELECTION]

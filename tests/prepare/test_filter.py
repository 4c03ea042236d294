"""From metadata to the rows that stay: the same bytes whatever happens on the way, and an account that adds up."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from laion_rows import contents, synthetic, write
from tiny import files_of_at_most

from sdscratch.errors import CannotWriteError, ConfigError, DataError, RunFolderError
from sdscratch.prepare.filter.filter import PARTS, ROWS, Filter
from sdscratch.prepare.filter.funnel import FUNNEL, Funnel
from sdscratch.prepare.filter.rules import Rules

RULES = Rules(min_aesthetic=5.0, min_side=256, words={"explicit": ["nude"]})
OUTPUTS = {ROWS, FUNNEL, "funnel.md", "funnel.png"}


def row(n: int, **fields: Any) -> dict[str, Any]:
    return {"URL": f"https://a.org/{n}", "TEXT": f"caption {n}", **fields}


def kept(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out / ROWS).to_pylist()


@pytest.fixture(scope="module")
def metadata(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files of 20,000 LAION-like rows each."""
    folder = tmp_path_factory.mktemp("metadata")
    for n in range(3):
        write(folder / f"part-{n}.parquet", synthetic(n * 20_000, (n + 1) * 20_000))
    return folder


@pytest.fixture(scope="module")
def filtered(metadata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What RULES leave of them."""
    out = tmp_path_factory.mktemp("filtered") / "out"
    Filter(RULES).write(metadata, out)
    return out


# What stays


def test_rows_that_stay_are_sorted_by_key_with_known_columns_first(filtered):
    rows = kept(filtered)
    assert list(rows[0]) == [
        *("key", "url", "caption", "width", "height", "similarity", "punsafe", "pwatermark", "aesthetic", "hash")
    ]
    keys = [row["key"] for row in rows]
    assert keys == sorted(set(keys)) and all(row["key"] == sha256(row["url"].encode()).hexdigest()[:20] for row in rows)
    assert all(r["aesthetic"] >= 5 and min(r["width"], r["height"]) >= 256 and "nude" not in r["caption"] for r in rows)
    assert len({row["caption"] for row in rows}) == len(rows)


def test_each_row_falls_to_the_first_rule_that_it_fails(filtered, metadata):
    rows = duckdb.sql(f"FROM '{metadata}/*.parquet'").to_arrow_table().to_pylist()
    expected = dict.fromkeys(("address", "min_aesthetic", "min_side", "explicit"), 0)
    left: dict[str, set[str]] = {}
    for found in rows:
        if found["AESTHETIC_SCORE"] < 5:
            expected["min_aesthetic"] += 1
        elif min(found["WIDTH"], found["HEIGHT"]) < 256:
            expected["min_side"] += 1
        elif "nude" in found["TEXT"]:
            expected["explicit"] += 1
        else:
            left.setdefault(found["URL"], set()).add(found["TEXT"])
    funnel = Funnel.read(filtered)
    assert funnel.rows == 60_000 and {name: funnel.dropped[name] for name in expected} == expected
    assert funnel.dropped["unique_url"] == 60_000 - sum(expected.values()) - len(left) > 100
    assert funnel.dropped["unique_caption"] > 0 and funnel.kept == len(kept(filtered))
    assert funnel.rows == funnel.kept + sum(funnel.dropped.values())


def test_duplicates_are_found_across_files_and_captions_by_what_they_say(tmp_path):
    write(tmp_path / "in/a.parquet", [row(1), row(2, TEXT="A  Red House"), row(3, TEXT="caf\u00e9")])
    write(
        tmp_path / "in/b.csv", [row(1), row(4, TEXT="a red house"), row(5, TEXT="Cafe\u0301"), row(6, TEXT="a red hut")]
    )
    funnel = Filter(Rules()).write(tmp_path / "in", tmp_path / "out")
    assert funnel.dropped == {"address": 0, "unique_url": 1, "unique_caption": 2} and funnel.kept == 4
    assert Filter(Rules(unique_url=False, unique_caption=False)).write(tmp_path / "in", tmp_path / "all").kept == 7


def test_rows_without_a_caption_are_no_duplicates_of_each_other(tmp_path):
    write(tmp_path / "in.csv", "SELECT 'https://a.org/' || i AS url, NULL AS text FROM range(5) t(i)")
    assert Filter(Rules()).write(tmp_path / "in.csv", tmp_path / "out").kept == 5


def test_a_sample_has_as_many_rows_as_asked_for_and_the_larger_one_holds_the_smaller(filtered, metadata, tmp_path):
    def sample(name: str, **rules: Any) -> set[str]:
        Filter(Rules(min_aesthetic=5.0, **rules)).write(metadata / "part-0.parquet", tmp_path / name)
        return {row["key"] for row in kept(tmp_path / name)}

    small, large, other = sample("s", max_rows=100), sample("l", max_rows=1000), sample("o", max_rows=100, seed=1)
    assert len(small) == len(other) == 100 and len(large) == 1000 and small < large and len(small & other) < 50


def test_filtering_again_what_was_filtered_changes_no_row(filtered, tmp_path):
    funnel = Filter(RULES).write(filtered / ROWS, tmp_path / "again")
    assert sum(funnel.dropped.values()) == 0 and contents(tmp_path / "again")[ROWS] == contents(filtered)[ROWS]


# Files that differ


def test_files_with_other_names_and_types_make_one_table(tmp_path):
    write(tmp_path / "in/a.parquet", "SELECT 'https://a.org/1' URL, 'one' TEXT, 600 WIDTH, 7 extra, 1.5 score")
    write(tmp_path / "in/b.csv", "SELECT 'two' caption, 'https://a.org/2' url, '700' width, 'seven' extra")
    Filter(Rules()).write(tmp_path / "in", tmp_path / "out")
    rows = sorted(kept(tmp_path / "out"), key=lambda row: row["caption"])
    assert [(r["caption"], r["width"], r["extra"], r["score"]) for r in rows] == [
        ("one", 600, "7", 1.5),
        ("two", 700, "seven", None),
    ]


def test_a_missing_column_is_named_with_its_rule_before_anything_is_done(tmp_path):
    write(tmp_path / "in/a.parquet", [row(1, aesthetic=7.0)])
    write(tmp_path / "in/b.parquet", [row(2)])
    with pytest.raises(
        DataError, match=r"b.parquet: the rule min_aesthetic needs a column aesthetic .or aesthetic_score"
    ):
        Filter(RULES).write(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rules_without_their_column_may_be_skipped_and_the_funnel_says_for_how_many_rows(tmp_path):
    write(tmp_path / "in/a.parquet", [row(1, aesthetic=7.0), row(2, aesthetic=1.0)])
    write(tmp_path / "in/b.parquet", [row(3), row(4), row(5, TEXT="nude")])
    rules = Rules(min_aesthetic=5.0, words={"explicit": ["nude"]})
    funnel = Filter(rules, on_missing="skip").write(tmp_path / "in", tmp_path / "out")
    assert funnel.skipped == {"min_aesthetic": {"aesthetic": 3}} and funnel.kept == 3
    assert funnel.dropped["min_aesthetic"] == funnel.dropped["explicit"] == 1
    assert "min_aesthetic was not applied to 3 rows" in (tmp_path / "out" / "funnel.md").read_text()


def test_rows_that_nothing_tells_apart_are_refused(tmp_path):
    write(tmp_path / "in.csv", "SELECT 'a prompt' AS prompt")
    with pytest.raises(DataError, match="nothing tells its rows apart: expected a column of url, .*; it has prompt"):
        Filter(Rules(), on_missing="skip").write(tmp_path / "in.csv", tmp_path / "out")


def torn(path: Path, length: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(length * path.stat().st_size)])
    return path


def damaged(path: Path) -> Path:
    """Its footer is whole, its rows are not: that shows only when they are read."""
    content = bytearray(path.read_bytes())
    content[200 : len(content) // 2] = bytes(len(content) // 2 - 200)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("harm", ["torn", "damaged", "empty", "text", "not utf-8"])
def test_a_file_that_cannot_be_read_is_named_or_left_out(tmp_path, metadata, harm):
    good = write(tmp_path / "in/good.parquet", [row(1), row(2)])
    bad = tmp_path / "in" / ("bad.csv" if harm == "not utf-8" else "bad.parquet")
    bad.write_bytes((metadata / "part-0.parquet").read_bytes())
    {
        "torn": torn,
        "damaged": damaged,
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("no parquet, but long enough to be one: " * 9),
        "not utf-8": lambda path: path.write_bytes(b"url,text\nhttps://a.org/,\xff\xfe\x00nonsense\n"),
    }[harm](bad)
    with pytest.raises(DataError, match="bad.(parquet|csv) cannot be read") as refused:
        Filter(Rules()).write(tmp_path / "in", tmp_path / "out")
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 600
    assert not (tmp_path / "out" / FUNNEL).exists()
    funnel = Filter(Rules(), on_bad="quarantine").write(tmp_path / "in", tmp_path / "out")
    assert list(funnel.unreadable) == [bad.name] and (funnel.rows, funnel.kept) == (2, 2)
    assert good.name not in (tmp_path / "out" / "funnel.md").read_text()


@pytest.mark.parametrize(
    ("rows", "rules", "said"),
    [
        ("SELECT 'https://a.org' AS url WHERE false", {}, "there are no rows to filter"),
        (
            "SELECT 'https://a.org' AS url, 1.0 AS aesthetic",
            {"min_aesthetic": 5.0},
            "no row is left of 1: most fell 1 to min_",
        ),
        ("SELECT 'nowhere' AS url", {}, "no row is left of 1: most fell 1 to address"),
    ],
)
def test_where_no_row_is_left_that_is_said_with_what_they_fell_to(tmp_path, rows, rules, said):
    write(tmp_path / "in.parquet", rows)
    with pytest.raises(DataError, match=said):
        Filter(Rules(**rules)).write(tmp_path / "in.parquet", tmp_path / "out")
    assert not (tmp_path / "out" / FUNNEL).exists() and not (tmp_path / "out" / PARTS).exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"on_missing": "ignore"}, "on_missing='ignore' is unknown; expected fail or skip"),
        ({"on_bad": "skip"}, "on_bad='skip' is unknown; expected fail or quarantine"),
        ({"memory": "much"}, "memory='much' is no size: expected one such as 3GB"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, said):
    with pytest.raises(ConfigError, match=said):
        Filter(Rules(), **settings)


# The same bytes


def test_neither_names_nor_sequence_of_files_nor_workers_nor_memory_change_a_byte(filtered, metadata, tmp_path):
    for n, name in enumerate(("z", "m", "a")):
        (tmp_path / "renamed" / name).mkdir(parents=True)
        (tmp_path / "renamed" / name / "x.parquet").hardlink_to(metadata / f"part-{n}.parquet")
    Filter(RULES, workers=2, memory="300MB").write(tmp_path / "renamed", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(filtered) and contents(filtered).keys() == OUTPUTS


def test_rows_may_lie_in_other_files_and_another_sequence_and_stay_the_same(filtered, metadata, tmp_path):
    write(tmp_path / "one.parquet", f"FROM '{metadata}/*.parquet' ORDER BY hash(URL, 1)")
    Filter(RULES).write(tmp_path / "one.parquet", tmp_path / "out")
    assert contents(tmp_path / "out")[ROWS] == contents(filtered)[ROWS]


def test_a_second_call_does_nothing_and_other_rules_never_take_its_place(filtered, metadata):
    before = {path.name: path.stat().st_mtime_ns for path in filtered.iterdir()}
    assert Filter(RULES).write(metadata, filtered) == Funnel.read(filtered)
    with pytest.raises(DataError, match=r"holds rows filtered otherwise .they differ in rules"):
        Filter(Rules(min_aesthetic=6.0)).write(metadata, filtered)
    assert {path.name: path.stat().st_mtime_ns for path in filtered.iterdir()} == before


def test_a_changed_input_is_another_input(tmp_path):
    write(tmp_path / "in.csv", [row(1), row(2)])
    Filter(Rules()).write(tmp_path / "in.csv", tmp_path / "out")
    write(tmp_path / "in.csv", [row(1), row(3)])
    with pytest.raises(DataError, match="differ in source_fingerprint"):
        Filter(Rules()).write(tmp_path / "in.csv", tmp_path / "out")


@pytest.mark.parametrize("size", [2000, 200_000])
def test_a_full_disk_is_said_and_when_there_is_space_again_it_goes_on(filtered, metadata, tmp_path, size):
    with files_of_at_most(size), pytest.raises(CannotWriteError, match="cannot write"):
        Filter(RULES).write(metadata, tmp_path / "out")
    Filter(RULES).write(metadata, tmp_path / "out")
    assert contents(tmp_path / "out") == contents(filtered)


def test_two_at_once_in_one_folder_are_kept_apart(metadata, tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from sdscratch.files import FolderLock; "
        f"lock = FolderLock(Path({str(tmp_path)!r})); lock.take(); print('taken', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline() == "taken\n"
    try:
        with pytest.raises(RunFolderError, match=f"is in use by process {other.pid}. Wait for it, or set another out="):
            Filter(RULES).write(metadata, tmp_path)
    finally:
        other.kill()
        other.wait()


def test_what_another_process_has_filtered_otherwise_meanwhile_is_not_replaced(metadata, tmp_path, monkeypatch):
    planned = Filter._planned

    def other_first(*arguments):
        monkeypatch.undo()
        Filter(Rules(min_side=1024)).write(metadata, tmp_path)
        return planned(*arguments)

    monkeypatch.setattr(Filter, "_planned", other_first)
    with pytest.raises(DataError, match=r"already holds rows filtered otherwise \(they differ in rules\)"):
        Filter(RULES).write(metadata, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == OUTPUTS
    assert Funnel.read(tmp_path).made_by["rules"]["min_side"] == 1024

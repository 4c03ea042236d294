"""One name and one type for every known column, whatever a collection calls and writes it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb
import pytest

from sdscratch.errors import DataError
from sdscratch.prepare.filter.metadata import columns_of, metadata_files, normalised, reader
from sdscratch.prepare.sql import identifier

PACK = Path(os.environ.get("SDSCRATCH_DATA_PACK", "../shared/data"))


def rows_of(path: Path) -> list[dict[str, Any]]:
    with duckdb.connect() as connection:
        known = normalised(columns_of(connection, path))
        selected = ", ".join(f"{sql} AS {identifier(name)}" for name, sql in known.items())
        return connection.sql(f"SELECT {selected} FROM {reader(path)}").to_arrow_table().to_pylist()


def only(tmp_path: Path, sql: str) -> dict[str, Any]:
    path = tmp_path / "rows.parquet"
    duckdb.sql(f"COPY (SELECT {sql}) TO '{path}'")
    (row,) = rows_of(path)
    return row


LAION = (
    "'https://a.b/c' URL, 'a cat' TEXT, 640 WIDTH, 480 HEIGHT, 0.3::FLOAT similarity, 0.1 punsafe, 0.2 pwatermark, "
    "6.5 AESTHETIC_SCORE, 'en' LANGUAGE"
)
COYO = (
    "'https://a.b/c' url, 'a cat' text, 640 width, 480 height, 0.3 clip_similarity_vitb32, 0.25 clip_similarity_vitl14, "
    "0.1 nsfw_score_opennsfw2, 0.2 watermark_score, 6.5 aesthetic_score_laion_v2, 'en' lang"
)
SPELT = (
    "'https://a.b/c' Image_URL, 'a cat' prompt, '640' original_width, 480.0 original_height, '0.3' CLIP_SIM, '0.1' NSFW, "
    "0.2 watermark, '6.5' aesthetic, 'en' language"
)


@pytest.mark.parametrize("columns", [LAION, COYO, SPELT])
def test_known_columns_have_one_name_and_one_type(tmp_path, columns):
    row = only(tmp_path, columns)
    expected = {
        "url": "https://a.b/c",
        "caption": "a cat",
        "width": 640,
        "height": 480,
        "punsafe": 0.1,
        "language": "en",
    }
    assert {name: row[name] for name in expected} == expected and type(row["width"]) is int
    assert (row["similarity"], row["pwatermark"], row["aesthetic"]) == pytest.approx((0.3, 0.2, 6.5))


def test_all_other_columns_stay_as_they_are_by_name(tmp_path):
    row = only(tmp_path, f"'x' zebra, 3::UBIGINT hash, {COYO}, [1, 2] \"two words\"")
    others = list(row)[list(row).index("__identity") + 1 :]
    assert others == ["clip_similarity_vitl14", "hash", "two words", "zebra"]
    assert (row["clip_similarity_vitl14"], row["hash"], row["two words"], row["zebra"]) == (0.25, 3, [1, 2], "x")


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("'UNLIKELY'", 0.0),
        ("'unsure'", 0.5),
        ("' NSFW '", 1.0),
        ("true", 1.0),
        ("false", 0.0),
        ("'0.25'", 0.25),
        ("0.25::FLOAT", 0.25),
        ("'perhaps'", None),
        ("''", None),
        ("NULL", None),
        ("'NaN'::DOUBLE", None),
        ("'inf'::DOUBLE", None),
    ],
)
def test_nsfw_is_read_in_words_and_in_numbers(tmp_path, written, read):
    assert only(tmp_path, f"'https://a.b/c' url, {written} NSFW")["punsafe"] == read


@pytest.mark.parametrize(("written", "read"), [("'512'", 512), ("512.0", 512), ("'wide'", None), ("'1e12'", None)])
def test_sizes_that_are_no_numbers_are_unknown(tmp_path, written, read):
    assert only(tmp_path, f"'https://a.b/c' url, {written} width")["width"] == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a cat", "a cat"),
        ("  a\tcat\r\nsleeps ", "a cat sleeps"),
        ("a\u3000cat\u2028sleeps\ufeff", "a cat sleeps"),
        ("\u732b\u304c\u5bdd\u308b \U0001f469\u200d\U0001f680", "\u732b\u304c\u5bdd\u308b \U0001f469\u200d\U0001f680"),
        ("", ""),
    ],
)
def test_a_caption_is_one_line_with_single_spaces(tmp_path, written, read):
    assert only(tmp_path, f"'https://a.b/c' url, '{written}' caption")["caption"] == read


def test_a_nul_and_captions_written_as_bytes_are_read(tmp_path):
    assert only(tmp_path, "'u' url, 'a' || chr(0) || 'cat' caption")["caption"] == "a cat"
    assert only(tmp_path, "'u' url, encode('été') caption")["caption"] == "été"
    assert only(tmp_path, "'u' url, '\\xC3\\x28'::BLOB caption")["caption"] is None


@pytest.mark.parametrize(
    ("columns", "identity"),
    [
        ("'https://a.b/c' url, 'x.png' image_name", "https://a.b/c"),
        ("'  HTTP://a.b/c ' url", "HTTP://a.b/c"),
        ("'ftp://a.b/c' url, 'x.png' image_name", None),
        ("'file:///etc/passwd' url", None),
        ("'x.png' image_name, 7 id", "x.png"),
        ("7 id", "7"),
    ],
)
def test_a_row_is_called_after_its_web_address_or_where_a_file_has_none_after_its_name(tmp_path, columns, identity):
    assert only(tmp_path, columns)["__identity"] == identity


def test_a_key_of_another_origin_is_not_taken_for_ours(tmp_path):
    assert "key" not in only(tmp_path, "'https://a.b/c' url, '000000001' key")


@pytest.mark.parametrize("name", ["rows.parquet", "rows.csv", "rows.tsv", "rows.csv.gz", "rows.jsonl", "a[1]*b's.csv"])
def test_every_format_is_read_whatever_the_file_is_called(tmp_path, name):
    path, other = tmp_path / name, tmp_path / "a1xb's.csv"
    other.write_text("url,text\nhttps://wrong.org/,wrong\n")
    kind = {"parquet": "FORMAT parquet", "tsv": "FORMAT csv, DELIMITER '\t'", "jsonl": "FORMAT json"}.get(
        name.split(".")[1], "FORMAT csv"
    )
    place = str(path).replace("'", "''")
    duckdb.sql(f"COPY (SELECT 'https://a.b/c' URL, 'a, \"b\"' TEXT, 5 WIDTH) TO '{place}' ({kind})")
    (row,) = rows_of(path)
    assert (row["url"], row["caption"], row["width"]) == ("https://a.b/c", 'a, "b"', 5)


def test_a_folder_is_read_with_all_below_it_but_hidden_files_and_the_output(tmp_path):
    for name in (
        "a.parquet",
        "deep/er/b.csv",
        ".hidden.csv",
        "_SUCCESS.csv",
        "notes.txt",
        "out/rows.parquet",
        ".cache/c.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = metadata_files(tmp_path, but_not_in=tmp_path / "out")
    assert sorted(path.name for path in found) == ["a.parquet", "b.csv"]


@pytest.mark.parametrize(
    ("name", "said"), [("nowhere", "does not exist"), ("", "holds none"), ("notes.txt", "no metadata")]
)
def test_what_holds_no_metadata_is_refused(tmp_path, name, said):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=f"{said}.*expected.*parquet"):
        metadata_files(tmp_path / name, but_not_in=tmp_path / "out")


@pytest.mark.skipif(not PACK.is_dir(), reason="needs the data pack")
@pytest.mark.parametrize(
    ("name", "rows", "known"),
    [
        ("url-metadata/laion_url_text_1000.parquet", 1000, {"url", "caption"}),
        ("url-metadata/laion_aesthetic_buckets.csv", 9463, {"url"}),
        (
            "url-metadata/coyo_readme_sample.csv",
            7,
            {"url", "caption", "width", "height", "similarity", "punsafe", "pwatermark", "aesthetic"},
        ),
        ("diffusiondb/metadata_head.csv", 5, {"caption", "width", "height", "punsafe"}),
    ],
)
def test_real_collections_are_understood(name, rows, known):
    found = rows_of(PACK / "raw" / name)
    assert len(found) == rows and all(column in found[0] for column in known)
    assert all(row["__identity"] for row in found[:5]) and all(
        row[column] is not None for row in found[:5] for column in known
    )

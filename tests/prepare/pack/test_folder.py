from __future__ import annotations

import hashlib
import json
import os

import pyarrow as pa
import pyarrow.parquet
import pytest
from raw_collections import picture, records, samples, write_files

from sdscratch.data.captions import captions_of
from sdscratch.errors import DataError
from sdscratch.prepare.pack import Folder
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pictures import Form


def pack(tmp_path, files, **settings):
    folder = write_files(tmp_path / "raw", files)
    manifest = Packer(Form()).pack(Folder(folder, **({"source": "test"} | settings)), tmp_path / "out")
    return manifest, records(tmp_path / "out")


def test_captions_come_from_tables_then_json_then_txt_and_never_from_names(tmp_path):
    files = {f"{name}.jpg": picture(n) for n, name in enumerate(["row", "json", "txt", "a red car, 4k"])}
    files |= {
        "metadata.csv": 'file_name,text,artist\nrow.jpg,"a row, with a comma",someone\n',
        "row.txt": "not this one",
        "json.json": json.dumps({"caption": "json's", "license": "CC0-1.0", "height": 1, "likes": 3}),
        "json.txt": "not this one",
        "txt.txt": "a text\n",
    }
    manifest, found = pack(tmp_path, files)
    assert {key: record["captions"] for key, record in found.items()} == {
        "row": ["a row, with a comma"],
        "json": ["json's"],
        "txt": ["a text"],
    }
    assert manifest.dropped == {"no caption": 1} and manifest.licences == {"unknown": 2, "CC0-1.0": 1}
    assert found["row"]["artist"] == "someone" and found["json"]["likes"] == 3 and found["json"]["height"] == 30


def test_an_empty_caption_in_json_lets_the_text_beside_it_count(tmp_path):
    _, found = pack(tmp_path, {"a.jpg": picture(), "a.json": '{"caption": "", "artist": "x"}', "a.txt": "a text"})
    assert found["a"]["captions"] == ["a text"] and found["a"]["artist"] == "x"


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolders_have_tables_of_three_kinds_and_the_nearest_counts(kind, tmp_path):
    files = {"train/dog/1.jpg": picture(1), "train/dog/2.png": picture(2, format="PNG"), "train/dog/2.txt": "no"}
    files |= {"cat.jpg": picture(3)}
    write_files(tmp_path / "raw", files)

    def table(path, rows):
        if kind == "parquet":
            pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / f"{path}.parquet")
        elif kind == "jsonl":
            write_files(tmp_path / "raw", {f"{path}.jsonl": "\n".join(map(json.dumps, rows)) + "\n"})
        else:
            lines = [",".join(row.values()) for row in (dict(zip(rows[0], rows[0], strict=True)), *rows)]
            write_files(tmp_path / "raw", {f"{path}.csv": "\n".join(lines)})

    table(
        "metadata",
        [{"file_name": "cat.jpg", "prompt": "a cat"}, {"file_name": "train/dog/1.jpg", "prompt": "not this one"}],
    )
    table("train/metadata", [{"file_name": "dog/1.jpg", "prompt": "a dog"}])
    manifest, found = pack(tmp_path, {}, side_cars=False)
    assert {key: record["captions"] for key, record in found.items()} == {"cat": ["a cat"], "train/dog/1": ["a dog"]}
    assert manifest.dropped == {"no caption": 1}


def test_another_column_may_hold_the_caption(tmp_path):
    files = {
        "a.jpg": picture(),
        "metadata.jsonl": '{"file_name": "a.jpg", "text": "alt text", "Long": "what is seen"}\n',
    }
    _, found = pack(tmp_path, files, caption="long")
    assert found["a"]["captions"] == ["what is seen"] and found["a"]["text"] == "alt text"


def test_keys_are_paths_or_their_hashes_and_do_not_hang_on_other_files(tmp_path):
    names = ["plain/a-1.jpg", "two.dots.jpg", "ünicode.png", "n" * 90 + ".webp"]
    formats = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
    files = {name: picture(n, format=formats[name.rpartition(".")[2]]) for n, name in enumerate(names)}
    _, found = pack(tmp_path, files | {name.rpartition(".")[0] + ".txt": name for name in names})
    hashes = [hashlib.sha256(name.encode()).hexdigest()[:20] for name in names[1:]]
    assert found.keys() == {"plain/a-1", *hashes}


def test_two_pictures_of_one_name_share_its_caption_not_its_key(tmp_path):
    _, found = pack(tmp_path, {"a.jpg": picture(1), "a.png": picture(2, format="PNG"), "a.txt": "a"})
    assert len(found) == 2 and all(len(key) == 20 for key in found)


def test_hidden_files_and_other_formats_are_no_pictures(tmp_path):
    files = {
        "a.jpg": picture(),
        "a.txt": "a",
        ".b.jpg": picture(),
        ".git/c.jpg": picture(),
        "d.gif": picture(format="GIF"),
    }
    manifest, found = pack(tmp_path, files)
    assert found.keys() == {"a"} and not manifest.dropped


def test_a_limit_draws_the_same_pictures_whatever_else_is_there(tmp_path):
    files = {f"{n}.jpg": picture(n) for n in range(20)} | {f"{n}.txt": str(n) for n in range(20)}
    _, found = pack(tmp_path, files, limit=6)
    for n in range(20):
        if str(n) not in found and n % 2:
            (tmp_path / f"raw/{n}.jpg").unlink()
    Packer(Form()).pack(Folder(tmp_path / "raw", "test", limit=6), tmp_path / "fewer")
    assert len(found) == 6 and records(tmp_path / "fewer") == found
    Packer(Form()).pack(Folder(tmp_path / "raw", "test", limit=6, seed=1), tmp_path / "other")
    assert records(tmp_path / "other").keys() != found.keys()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.jsonl", '{"file_name": "a.jpg"', "metadata.jsonl cannot be read"),
        ("metadata.jsonl", "[1]", "metadata.jsonl has a row without file_name"),
        ("metadata.csv", "name,text\na.jpg,x\n", "metadata.csv has a row without file_name"),
        ("metadata.parquet", "no parquet", "metadata.parquet cannot be read"),
    ],
)
def test_tables_that_cannot_be_read_are_named(name, content, said, tmp_path):
    with pytest.raises(DataError, match=said):
        pack(tmp_path, {"a.jpg": picture(), name: content})


def test_every_real_picture_is_stored_or_falls_with_a_reason(tmp_path, data_pack):
    raw = data_pack("raw/formats")
    write_files(tmp_path / "raw", {path.name: path.read_bytes() for path in raw.iterdir() if path.suffix != ".csv"})
    files = [path for path in (tmp_path / "raw").iterdir() if path.suffix.lower() != ".gif"]
    write_files(tmp_path / "raw", {f"{path.stem}.txt": "a picture" for path in files})
    manifest = Packer(Form(size=64)).pack(Folder(tmp_path / "raw", "formats"), tmp_path / "out")
    assert manifest.total == len(files) == 49 and not manifest.dropped
    assert all(min(record["width"], record["height"]) <= 64 for record in records(tmp_path / "out").values())
    stored = samples(tmp_path / "out")
    assert all(captions_of(members, json.loads(members["json"])) == ["a picture"] for members in stored.values())


def test_shards_that_are_written_among_the_pictures_are_none_of_the_collection(tmp_path):
    folder = write_files(tmp_path, {"a.jpg": picture(), "a.txt": "a caption"})
    first = Packer(Form()).pack(Folder(folder, "test"), folder)
    assert Packer(Form()).pack(Folder(folder, "test"), folder) == first


def test_fields_that_json_has_not_are_kept_as_text(tmp_path):
    folder = write_files(tmp_path / "raw", {"a.jpg": picture()})
    table = pa.table({"file_name": ["a.jpg"], "text": ["a caption"], "seen": pa.array([0], pa.timestamp("s"))})
    pa.parquet.write_table(table, folder / "metadata.parquet")
    Packer(Form()).pack(Folder(folder, "test"), tmp_path / "out")
    assert records(tmp_path / "out")["a"]["seen"] == "1970-01-01 00:00:00"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("metadata.csv", "file_name,text\na.jpg,a red car, on a road\n", "more fields than the first"),
        ("metadata.jsonl", "[" * 100_000, "cannot be read"),
    ],
)
def test_tables_that_would_lose_captions_or_cannot_be_read_are_refused(tmp_path, name, content, said):
    with pytest.raises(DataError, match=said):
        pack(tmp_path, {"a.jpg": picture(), name: content})


def test_links_to_nowhere_and_pipes_are_refused_by_name(tmp_path):
    folder = write_files(tmp_path / "raw", {"a.jpg": picture(), "a.txt": "a caption"})
    (folder / "b.jpg").symlink_to("nowhere")
    with pytest.raises(DataError, match="b.jpg cannot be read"):
        Packer(Form()).pack(Folder(folder, "test"), tmp_path / "out")
    (folder / "b.jpg").unlink()
    os.mkfifo(folder / "b.jpg")
    (folder / "b.txt").write_text("a caption")
    with pytest.raises(DataError, match="b.jpg is no file"):
        Packer(Form()).pack(Folder(folder, "test"), tmp_path / "out")


def test_a_field_for_captions_that_holds_none_lets_the_next_one_count(tmp_path):
    files = {f"{name}.jpg": picture(n) for n, name in enumerate("abc")}
    files |= {"a.json": '{"captions": null, "caption": "of a"}', "b.json": '{"captions": [" "], "text": "of b"}'}
    files |= {"metadata.csv": "file_name,text,prompt\nc.jpg,,of c\n"}
    manifest, found = pack(tmp_path, files)
    assert {key: record["captions"] for key, record in found.items()} == {"a": ["of a"], "b": ["of b"], "c": ["of c"]}
    assert not manifest.dropped

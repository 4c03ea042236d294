"""DiffusionDB and JourneyDB: archives, read where they lie."""

from __future__ import annotations

import csv
import gzip
import io
import json
import tarfile
import zipfile

import pyarrow as pa
import pyarrow.parquet
import pytest
from raw_collections import diffusiondb, journeydb, picture, records, samples, tarred, write_files, zipped

from sdscratch.errors import DataError
from sdscratch.prepare.pack import DiffusionDB, JourneyDB
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pictures import Form

PACKER = Packer(Form(), shard_size=3)
QUARANTINE = Packer(Form(), shard_size=3, on_bad="quarantine")


# DiffusionDB


def test_prompts_are_joined_by_name_and_scores_are_kept(tmp_path):
    manifest = PACKER.pack(DiffusionDB(diffusiondb(tmp_path / "raw")), tmp_path / "out")
    assert [shard.name for shard in manifest.shards] == [f"part-00000{p}-0000{n}.tar" for p in (1, 2) for n in (0, 1)]
    found = records(tmp_path / "out")
    record = found["part-000002/00000002-0003-4000-8000-000000000000"]
    assert record["captions"] == ["prompt 2 3"] and record["image_nsfw"] == 0.25 and record["seed"] == 3
    assert manifest.licences == {"CC0-1.0": 10} and "user_name" not in record and "timestamp" not in record


def test_without_the_table_each_zips_own_prompts_count(tmp_path):
    (diffusiondb(tmp_path / "raw") / "metadata.parquet").unlink()
    PACKER.pack(DiffusionDB(tmp_path / "raw"), tmp_path / "out")
    found = records(tmp_path / "out")
    record = found["part-000001/00000001-0002-4000-8000-000000000000"]
    assert record["captions"] == ["prompt 1 2"] and record["sampler"] == "k_lms" and len(found) == 10


def test_pictures_that_are_not_in_the_table_fall(tmp_path):
    raw = diffusiondb(tmp_path / "raw", parts=1)
    with zipfile.ZipFile(raw / "images/part-000001.zip", "a") as archive:
        archive.writestr("stranger.png", picture(7, format="PNG"))
    assert PACKER.pack(DiffusionDB(raw), tmp_path / "out").dropped == {"not in the table": 1}


def test_members_that_are_damaged_links_or_lead_elsewhere_do_no_harm(tmp_path):
    raw = diffusiondb(tmp_path / "raw", parts=1)
    content = {f"{n}.png": picture(n, format="PNG") for n in range(3)}
    link = zipfile.ZipInfo("link.png")
    link.external_attr = 0o120777 << 16
    file = io.BytesIO(zipped(content))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("../../up.png", picture(9, format="PNG"))
        archive.writestr(
            "part-000001.json", json.dumps({name: {"p": name} for name in ("0.png", "1.png", "2.png", "up.png")})
        )
    data = bytearray(file.getvalue())
    data[data.index(content["1.png"]) + 50] ^= 1  # a flipped bit: the checksum tells
    write_files(raw, {"images/part-000001.zip": bytes(data)})
    (raw / "metadata.parquet").unlink()
    manifest = QUARANTINE.pack(DiffusionDB(raw), tmp_path / "out")
    assert records(tmp_path / "out").keys() == {"part-000001/0", "part-000001/2", "part-000001/up"}
    assert manifest.dropped == {"not decodable": 1} and not (tmp_path / "up.png").exists()


def test_zips_that_cannot_be_used_are_named(tmp_path):
    raw = diffusiondb(tmp_path / "raw")
    whole = (raw / "images/part-000002.zip").read_bytes()
    write_files(raw, {"images/part-000002.zip": whole[: len(whole) // 2]})
    with pytest.raises(DataError, match=r"part-000002.zip is damaged: .*Fetch it again"):
        QUARANTINE.pack(DiffusionDB(raw), tmp_path / "out")
    write_files(raw, {"images/part-000002.zip": whole})
    assert QUARANTINE.pack(DiffusionDB(raw), tmp_path / "again").total == 10
    write_files(raw, {"more/part-000002.zip": whole})
    with pytest.raises(DataError, match="two zips of one name"):
        PACKER.pack(DiffusionDB(raw), tmp_path / "twice")
    bare = write_files(tmp_path / "bare", {"part-000001.zip": zipped({"a.png": picture(format="PNG")})})
    with pytest.raises(DataError, match="holds no part-000001.json, and there is no metadata.parquet"):
        PACKER.pack(DiffusionDB(bare), tmp_path / "bare_out")


def test_the_real_pictures_and_rows_are_packed(tmp_path, data_pack):
    raw = data_pack("raw/diffusiondb")
    with open(raw / "metadata_head.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:2]
    typed = [row | {"part_id": int(row["part_id"]), "image_nsfw": float(row["image_nsfw"])} for row in rows]
    pictures = [(raw / f"notebook_image_{n}.png").read_bytes() for n in range(2)]
    files = {row["image_name"]: data for row, data in zip(rows, pictures, strict=True)}
    write_files(tmp_path / "raw", {"part-000001.zip": zipped(files)})
    pyarrow.parquet.write_table(pa.Table.from_pylist(typed), tmp_path / "raw/metadata.parquet")
    Packer(Form(size=64)).pack(DiffusionDB(tmp_path / "raw"), tmp_path / "out")
    found = records(tmp_path / "out")
    record = found["part-000001/2217ccbd-a1c6-47ac-9a2d-79649727c834"]
    assert record["captions"] == [rows[0]["prompt"]] and record["image_nsfw"] == 0.554853
    assert (record["original_width"], record["original_height"], record["width"]) == (512, 704, 64)


def test_of_pictures_of_one_name_the_first_counts_and_the_others_are_accounted_for(tmp_path):
    raw = diffusiondb(tmp_path / "raw", parts=1)
    (raw / "metadata.parquet").unlink()
    file = io.BytesIO((raw / "images/part-000001.zip").read_bytes())
    with zipfile.ZipFile(file, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        name = "00000001-0001-4000-8000-000000000000.png"
        archive.writestr(name, picture(50, format="PNG"))  # under its very name
        archive.writestr(f"b/{name}", picture(51, format="PNG"))
        archive.writestr(f"a/{name}", picture(52, format="PNG"))
    write_files(raw, {"images/part-000001.zip": file.getvalue()})
    one = PACKER.pack(DiffusionDB(raw), tmp_path / "one")
    assert one.total == 5 and one.dropped == {"comes twice": 3}
    assert samples(tmp_path / "one")[f"part-000001/{name[:-4]}"]["png"] == picture(101, format="PNG")

    raw = journeydb(tmp_path / "journey", archives=1)
    first = "./000/00000001-aaaa-4000-8000-000000000000.jpg"
    with tarfile.open(raw / "imgs/000.tgz") as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}
    line = json.dumps({"img_path": first.replace(".jpg", ".png"), "prompt": "again"})
    with tarfile.open(raw / "train_anno_realease_repath.jsonl.tgz") as archive:
        text = archive.extractfile("train_anno_repath.jsonl").read()
    content[first.replace(".jpg", ".png")] = picture(60, format="PNG")  # another file, the same key
    write_files(raw, {"imgs/000.tgz": tarred(content), "train_anno_repath.jsonl": text + line.encode()})
    other = PACKER.pack(JourneyDB(raw, annotations="train_anno_repath.jsonl"), tmp_path / "other")
    assert other.total == 5 and other.dropped == {"comes twice": 1}


# JourneyDB


@pytest.mark.parametrize(
    ("caption", "said"),
    [("prompt", ["prompt 1 4 --v 5"]), ("caption", ["caption 4"]), ("both", ["prompt 1 4 --v 5", "caption 4"])],
)
def test_annotations_are_joined_by_path_from_inside_their_own_archive(caption, said, tmp_path):
    PACKER.pack(JourneyDB(journeydb(tmp_path / "raw"), caption=caption), tmp_path / "out")
    found = records(tmp_path / "out")
    assert len(found) == 10 and found["001/10000004-aaaa-4000-8000-000000000000"]["captions"] == said


def test_annotations_may_lie_unpacked(tmp_path):
    raw = journeydb(tmp_path / "raw")
    with tarfile.open(raw / "train_anno_realease_repath.jsonl.tgz") as archive:
        text = archive.extractfile("train_anno_repath.jsonl").read()
    write_files(raw, {"mine.jsonl": text})
    PACKER.pack(JourneyDB(raw), tmp_path / "packed")
    PACKER.pack(JourneyDB(raw, annotations="mine.jsonl"), tmp_path / "plain")
    assert records(tmp_path / "packed") == records(tmp_path / "plain")


def test_pictures_without_annotation_or_that_come_twice_fall(tmp_path):
    raw = journeydb(tmp_path / "raw", archives=1)
    with tarfile.open(raw / "imgs/000.tgz") as archive:
        content = {member.name: archive.extractfile(member).read() for member in archive}
    again, *_ = content
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name in (*content, "./000/stranger.jpg", again):
            member = tarfile.TarInfo(name)
            member.size = len(content.get(name, b"x"))
            archive.addfile(member, io.BytesIO(content.get(name, b"x")))
        link = tarfile.TarInfo("./000/link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    write_files(raw, {"imgs/000.tgz": file.getvalue()})
    manifest = PACKER.pack(JourneyDB(raw), tmp_path / "out")
    assert manifest.total == 5 and manifest.dropped == {"not annotated": 1, "comes twice": 1}


def damaged(data, how):
    plain = bytearray(gzip.decompress(data))
    if how == "header":  # of the third member: a lesser reader would take it for the end
        plain[plain.index(b"./000/00000002") + 3] ^= 1
        return gzip.compress(plain)
    if how == "cut tar":
        return gzip.compress(plain[: len(plain) // 2 - len(plain) // 2 % 512])
    if how == "checksum":
        return data[:-8] + bytes(4) + data[-4:]
    return data[: len(data) // 2]


@pytest.mark.parametrize("how", ["header", "cut tar", "cut gzip", "checksum"])
@pytest.mark.parametrize("packer", [PACKER, QUARANTINE])
def test_a_damaged_tgz_never_loses_pictures_in_silence(how, packer, tmp_path):
    raw = journeydb(tmp_path / "raw", archives=1)
    write_files(raw, {"imgs/000.tgz": damaged((raw / "imgs/000.tgz").read_bytes(), how)})
    with pytest.raises(DataError, match=r"000.tgz (is damaged|is cut off).*(Restore|Mend)"):
        packer.pack(JourneyDB(raw), tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "said"),
    [('{"img_path": "./000/x.jpg"', "line 6 is no annotation"), ('{"path": "./000/x.jpg"}', "line 6 is no annotation")],
)
def test_annotations_that_cannot_be_read_are_named(line, said, tmp_path):
    raw = journeydb(tmp_path / "raw", archives=1)
    with tarfile.open(raw / "train_anno_realease_repath.jsonl.tgz") as archive:
        text = archive.extractfile("train_anno_repath.jsonl").read()
    write_files(raw, {"train_anno_realease_repath.jsonl.tgz": tarred({"a.jsonl": text + line.encode()})})
    with pytest.raises(DataError, match=said):
        PACKER.pack(JourneyDB(raw), tmp_path / "out")

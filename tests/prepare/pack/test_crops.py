"""VGGFace2's faces and COCO's people: what is cut out, and what is said of it."""

from __future__ import annotations

import io
import json

import pytest
from PIL import Image
from raw_collections import coco, picture, records, samples, vggface2, write_files

from sdscratch.data.images import open_image
from sdscratch.errors import ConfigError, DataError
from sdscratch.prepare.crops import Box, square_around
from sdscratch.prepare.pack import Coco, VGGFace2
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pack.vggface2 import captions, read_attributes, read_genders
from sdscratch.prepare.pictures import Form

PACKER = Packer(Form())


@pytest.mark.parametrize(
    ("box", "margin", "square"),
    [
        (Box(30, 40, 20, 30), 0.0, (25, 40, 55, 70)),  # as high as wide
        (Box(30, 40, 20, 20), 0.5, (20, 30, 60, 70)),  # half of it on each side
        (Box(0, 0, 20, 20), 0.5, (0, 0, 40, 40)),  # moved into the picture
        (Box(80, 100, 30, 30), 0.0, (70, 90, 100, 120)),  # a box that goes beyond it
        (Box(10, 5, 20, 110), 0.5, (0, 0, 100, 120)),  # larger than the picture: all there is
        (Box(0.4, 0.4, 0.2, 0.2), 0.0, (0, 0, 1, 1)),  # never nothing
    ],
)
def test_the_square_around_a_box_lies_in_the_picture(box, margin, square):
    assert square_around(box, (100, 120), margin) == square


@pytest.mark.parametrize(
    "box",
    [
        Box(100, 0, 10, 10),
        Box(-10, 0, 10, 10),
        Box(0, 0, 0, 10),
        Box(0, float("nan"), 5, 5),
        Box(0, 0, 5, float("inf")),
    ],
)
def test_a_box_outside_its_picture_is_refused(box):
    with pytest.raises(DataError, match="is not in the 100x120 picture"):
        square_around(box, (100, 120), 0.1)


def test_boxes_are_those_of_the_upright_picture():
    image = Image.new("RGB", (100, 60), "white")
    image.paste(
        "red", (80, 0, 100, 20)
    )  # top right; turned by 90 degrees clockwise, as orientation 6 says: bottom right
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "PNG", exif=exif)
    stored = Form().store(file.getvalue(), Box(40, 80, 20, 20))
    assert (stored.width, stored.height, stored.original_width, stored.original_height) == (20, 20, 60, 100)
    assert open_image(stored.data).getpixel((10, 10))[1] < 50


# VGGFace2


def test_faces_are_cut_out_and_described_by_their_attributes_alone(tmp_path):
    manifest = PACKER.pack(VGGFace2(vggface2(tmp_path / "raw")), tmp_path / "out")
    found = records(tmp_path / "out")
    assert manifest.total == 11 and manifest.dropped == {"no box": 1}
    described = found["n000002/0000_01"]
    assert described["captions"][0] == "a photo of a woman with long hair, wearing glasses"
    assert (described["width"], described["height"], described["original_height"]) == (48, 48, 120)  # 30 + 2 * 0.3 * 30
    assert found["n000003/0002_01"]["captions"][1] == "a portrait of a man" and described["identity"] == "n000002"
    assert "Frenzy" not in json.dumps(found) and manifest.licences == {"VGGFace2: research only": 11}


def test_whole_pictures_need_no_boxes(tmp_path):
    raw = vggface2(tmp_path / "raw")
    (raw / "bb_landmark/loose_bb_train.csv").unlink()
    with pytest.raises(DataError, match="loose_bb_train.csv: expected the boxes .* or set crop=none"):
        PACKER.pack(VGGFace2(raw), tmp_path / "out")
    assert PACKER.pack(VGGFace2(raw, crop="none"), tmp_path / "out").total == 12


def test_people_and_their_pictures_are_drawn_whatever_else_is_there(tmp_path):
    raw = vggface2(tmp_path / "raw")
    PACKER.pack(VGGFace2(raw, crop="none", per_identity=2, limit=2), tmp_path / "out")
    found = records(tmp_path / "out")
    people = [record["identity"] for record in found.values()]
    assert len(found) == 4 and sorted({people.count(person) for person in people}) == [2]
    for path in raw.glob("train/*/*.jpg"):
        if f"{path.parent.name}/{path.stem}" not in found:
            path.unlink()
    PACKER.pack(VGGFace2(raw, crop="none", per_identity=2, limit=2), tmp_path / "again")
    assert records(tmp_path / "again") == found


def test_without_gender_or_attributes_captions_say_person():
    assert captions(None, []) == ["a photo of a person", "a portrait of a person", "a photo of the face of a person"]
    assert captions("m", ["Unheard_of", "Sunglasses"])[0] == "a photo of a man wearing sunglasses"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("meta/identity_meta.csv", "Class_ID, Name\nn000002, someone, 3, 1, female\n", r"identity_meta.csv, line 2"),
        ("bb_landmark/loose_bb_train.csv", 'NAME_ID,X,Y,W,H\n"n000002/0000_01",1,2,3\n', r"loose_bb_train.csv, line 2"),
        ("attributes/09-Eyeglasses.txt", "n000002/0000_01.jpg\tyes\n", r"09-Eyeglasses.txt, line 1"),
    ],
)
def test_tables_of_another_form_are_named_with_the_line(name, content, said, tmp_path):
    raw = write_files(vggface2(tmp_path / "raw"), {name: content})
    with pytest.raises(DataError, match=said):
        PACKER.pack(VGGFace2(raw), tmp_path / "out")


def test_every_line_of_the_real_tables_is_read(data_pack):
    raw = data_pack("raw/vggface2")
    genders = read_genders(raw / "identity_meta.csv")
    assert len(genders) == 9131 and set(genders.values()) == {"m", "f"}
    assert (genders["n000001"], genders["n000002"], genders["n000659"]) == ("m", "f", "f")
    attributes = read_attributes(sorted((raw / "attributes_head").iterdir()))
    assert "Long_Hair" in attributes["n000002/0090_01.jpg"] and "n000002/0032_01.jpg" not in attributes


# COCO


def test_people_of_enough_height_are_cut_out_with_the_captions_of_their_picture(tmp_path):
    manifest = PACKER.pack(Coco(coco(tmp_path / "raw")), tmp_path / "out")
    found = records(tmp_path / "out")
    assert found.keys() == {"000000000001-11", "000000000002-22"}  # not 54 %, not the dog, not the crowd
    first, second = found.values()
    assert first["captions"] == [f"picture 1, wording {k}" for k in range(5)]
    assert (first["width"], first["height"]) == (72, 72) and (second["width"], second["height"]) == (60, 100)
    assert manifest.licences == {"Attribution License": 1, "Attribution-NonCommercial License": 1}


def test_keypoints_serve_where_there_are_no_instances(tmp_path):
    raw = coco(tmp_path / "raw")
    PACKER.pack(Coco(raw), tmp_path / "instances")
    (raw / "annotations/instances_train2017.json").rename(raw / "annotations/person_keypoints_train2017.json")
    PACKER.pack(Coco(raw), tmp_path / "keypoints")
    assert samples(tmp_path / "keypoints") == samples(tmp_path / "instances")


def test_whole_pictures_without_captions_or_files_fall(tmp_path):
    raw = coco(tmp_path / "raw")
    (raw / "train2017/000000000002.jpg").unlink()
    manifest = PACKER.pack(Coco(raw, crop="none"), tmp_path / "out")
    assert records(tmp_path / "out").keys() == {"000000000001"}
    assert manifest.dropped == {"no caption": 1, "no picture": 1}
    assert samples(tmp_path / "out")["000000000001"]["jpg"] == picture(1, (100, 80))


def test_annotations_of_another_form_are_named(tmp_path):
    raw = write_files(coco(tmp_path / "raw"), {"annotations/captions_train2017.json": "[]"})
    with pytest.raises(DataError, match="captions_train2017.json has no images, annotations"):
        PACKER.pack(Coco(raw), tmp_path / "out")


def test_the_real_people_are_cut_out(tmp_path, data_pack):
    raw = data_pack("raw/coco")
    settings = {"annotations": "annotations_mini", "split": "train2017"}
    manifest = Packer(Form(size=64)).pack(Coco(raw, **settings), tmp_path / "out")
    boxes = json.loads((raw / "annotations_mini/person_keypoints_train2017.json").read_text())
    heights = {image["id"]: image["height"] for image in boxes["images"]}
    tall = [b for b in boxes["annotations"] if not b["iscrowd"] and b["bbox"][3] >= 0.55 * heights[b["image_id"]]]
    found = records(tmp_path / "out")
    assert manifest.total == len(tall) == 21 and not manifest.dropped
    assert {record["coco_id"] for record in found.values()} == {box["image_id"] for box in tall}
    assert all(
        len(record["captions"]) == 5 and min(record["width"], record["height"]) == 64 for record in found.values()
    )
    whole = Packer(Form(size=64)).pack(Coco(raw, crop="none", limit=10, **settings), tmp_path / "whole")
    assert whole.total == 10


@pytest.mark.parametrize(
    "change",
    [
        lambda found: found["images"][0].update(file_name="../../elsewhere.jpg"),
        lambda found: found["images"][0].update(file_name="/elsewhere.jpg"),
        lambda found: found["images"][0].pop("file_name"),
        lambda found: found["annotations"][0].pop("image_id"),
        lambda found: found.update(images=["a"]),
    ],
)
def test_annotations_that_lead_elsewhere_or_are_none_of_cocos_are_refused(tmp_path, change):
    (tmp_path / "train2017").mkdir()
    (tmp_path / "annotations").mkdir()
    found = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "caption": "a caption"}],
    }
    change(found)
    (tmp_path / "annotations" / "captions_train2017.json").write_text(json.dumps(found))
    with pytest.raises(DataError, match="not in COCO's format"):
        Coco(tmp_path, crop="none").parts(10)


@pytest.mark.parametrize("kind", [Coco, VGGFace2])
@pytest.mark.parametrize("margin", [float("nan"), float("inf"), -0.1])
def test_a_margin_that_is_no_share_of_a_box_is_refused(kind, margin):
    with pytest.raises(ConfigError, match="margin is .*: expected a share of the box, from 0 to 100"):
        kind(".", margin=margin)

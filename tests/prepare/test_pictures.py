"""The form in which pictures are stored."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sdscratch.data.images import open_image
from sdscratch.errors import ConfigError
from sdscratch.prepare.pictures import Form
from sdscratch.prepare.refusal import Refused

PACK = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[3] / "shared" / "data"))
SMALL = Form(size=32, min_size=8)
UPSIDE_DOWN = Image.Exif()
UPSIDE_DOWN[0x0112] = 3


def scene(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Smooth, with a busy end at the right and the bottom."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    noise = np.random.default_rng(0).random((height, width)) * ((x > 0.7) & (y > 0.7))
    pixels = np.stack([x, y, noise], axis=-1) * 255
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, format: str = "JPEG", **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("size", "stored"),
    [((64, 48), (43, 32)), ((48, 64), (32, 43)), ((320, 64), (160, 32)), ((33, 33), (32, 32)), ((32, 500), (32, 500))],
)
def test_the_shorter_side_is_reduced_and_the_aspect_kept(size, stored):
    picture = SMALL.store(encoded(scene(*size)))
    assert (picture.width, picture.height) == stored == open_image(picture.data).size
    assert (picture.original_width, picture.original_height) == size


def test_a_picture_is_enlarged_only_when_asked():
    small = encoded(scene(20, 10))
    kept, enlarged = SMALL.store(small), Form(size=32, min_size=8, enlarge=True).store(small)
    assert (kept.width, kept.height, enlarged.width, enlarged.height) == (20, 10, 64, 32)


def test_without_a_size_no_picture_is_reduced_and_a_large_original_was_large_enough():
    original = encoded(scene(300, 200))
    assert Form(min_size=200).store(original).data == original
    assert Form(size=100, min_size=200).store(original).height == 100


def test_what_is_too_small_or_too_long_is_refused():
    with pytest.raises(Refused, match="too small: 40x7"):
        SMALL.store(encoded(scene(40, 7)))
    with pytest.raises(Refused, match="too long"):
        SMALL.store(encoded(scene(17000, 10), "PNG"))
    assert SMALL.store(encoded(scene(8, 8))).width == 8


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_original_that_needs_no_change_is_kept_byte_for_byte(format):
    original = encoded(scene(40, 30), format)
    picture = SMALL.store(original)
    assert picture.data == original and picture.suffix == {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[format]
    rewritten = Form(size=32, min_size=8, keep_bytes=len(original) - 1).store(original)
    assert rewritten.data != original and rewritten.suffix == "jpg"


@pytest.mark.parametrize(
    "original",
    [
        encoded(scene(30, 30, "RGBA"), "PNG"),
        encoded(scene(30, 30, "CMYK")),
        encoded(scene(30, 30, "P"), "PNG"),
        encoded(scene(30, 30), exif=UPSIDE_DOWN),
        encoded(scene(30, 30), "WEBP", save_all=True, append_images=[scene(30, 30, "L")], lossless=True),
    ],
    ids=["transparent", "CMYK", "palette", "upside down", "animated"],
)
def test_what_readers_could_see_differently_is_written_anew(original):
    picture = SMALL.store(original)
    with Image.open(BytesIO(picture.data)) as image:
        assert (image.format, image.mode, image.size, dict(image.getexif())) == ("JPEG", "RGB", (30, 30), {})


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_stored_upright(orientation):
    upright = scene(60, 40)
    turned = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[
        orientation
    ]  # the transposition that undoes it, inverted
    exif = Image.Exif()
    exif[0x0112] = orientation
    sideways = upright if turned is None else upright.transpose(Image.Transpose(turned))
    picture = Form(size=20, min_size=8).store(encoded(sideways, "PNG", exif=exif))
    assert (picture.width, picture.height) == (30, 20) and picture.original_width == 60
    plain = Form(size=20, min_size=8).store(encoded(upright, "PNG"))
    assert picture.data == plain.data and picture.phash == plain.phash


@pytest.mark.parametrize(("size", "centre", "smart"), [((96, 32), 0.5, 1.0), ((32, 96), 0.5, 1.0)])
def test_a_crop_is_a_square_from_the_centre_or_from_where_the_edges_are(size, centre, smart):
    original = encoded(scene(*size), "PNG")
    for crop, place in {"centre": centre, "smart": smart}.items():
        picture = Form(size=32, min_size=8, crop=crop, format="png").store(original)
        left, top = (round(place * (length - 32)) for length in size)
        assert (picture.width, picture.height) == (32, 32)
        expected = scene(*size).crop((left, top, left + 32, top + 32))
        assert np.array_equal(np.asarray(open_image(picture.data)), np.asarray(expected))


def test_without_edges_the_smart_crop_is_the_central_one():
    original = encoded(Image.new("RGB", (90, 30), "teal"), "PNG")
    forms = [Form(size=32, min_size=8, crop=crop, keep_bytes=0) for crop in ("smart", "centre")]
    assert forms[0].store(original) == forms[1].store(original)


@pytest.mark.parametrize(("format", "expected"), [("jpg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_pictures_are_written_in_the_format_asked_for_and_always_alike(format, expected):
    form, original = Form(size=16, min_size=8, format=format, quality=80), encoded(scene(40, 30), "PNG")
    picture = form.store(original)
    with Image.open(BytesIO(picture.data)) as image:
        assert image.format == expected and picture.suffix == format
    assert form.store(original) == picture


def test_pictures_that_look_alike_have_near_hashes_and_others_do_not():
    def bits(picture) -> int:
        return int(picture.phash, 16)

    one = SMALL.store(encoded(scene(64, 48), quality=95))
    again = SMALL.store(encoded(scene(64, 48), quality=60))
    other = SMALL.store(encoded(scene(64, 48).transpose(Image.Transpose.ROTATE_180)))
    assert (
        len(one.phash) == 16 and (bits(one) ^ bits(again)).bit_count() <= 6 < 16 < (bits(one) ^ bits(other)).bit_count()
    )


@pytest.mark.parametrize(
    "data", [b"", b"<html>", b"\xff\xd8\xff\xe0 cut", encoded(scene(30, 30))[:300], b"GIF89a" + bytes(50)]
)
def test_what_is_no_picture_is_refused(data):
    with pytest.raises(Refused, match="not decodable"):
        SMALL.store(data)


def test_a_picture_bomb_is_refused_at_its_header():
    with pytest.raises(Refused, match="not decodable: the image has 9000x9000 pixels"):
        SMALL.store(encoded(Image.new("1", (9000, 9000)), "PNG", compress_level=1))


@pytest.mark.parametrize(
    "setting", [{"size": 0}, {"min_size": 0.5}, {"crop": "left"}, {"format": "gif"}, {"quality": 101}]
)
def test_forms_that_make_no_sense_are_refused(setting):
    with pytest.raises(ConfigError, match=next(iter(setting))):
        Form(**setting)


@pytest.mark.skipif(not (PACK / "raw" / "formats").is_dir(), reason="needs the data pack")
def test_real_pictures_of_all_kinds_are_stored_or_refused_with_a_reason():
    stored = {}
    for path in sorted((PACK / "raw" / "formats").iterdir()):
        try:
            picture = Form(size=128, min_size=64).store(path.read_bytes())
        except Refused as refused:
            assert refused.reason in ("too small", "not decodable")
            assert path.suffix.lower() in (".gif", ".csv") or refused.reason == "too small"
        else:
            image = open_image(picture.data)
            assert image.size == (picture.width, picture.height) and min(image.size) <= 128
            ratio = (picture.width / picture.height) / (picture.original_width / picture.original_height)
            assert abs(ratio - 1) < 0.02
            stored[path.name] = picture
    assert len(stored) >= 44

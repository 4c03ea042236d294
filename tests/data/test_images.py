from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_shards import encode, picture

from sdscratch.data.images import check_resolution, image_member, open_image, preprocess, to_pil, to_tensor
from sdscratch.errors import ConfigError, DataError


def header_of_a_png(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def animation(format: str) -> bytes:
    return encode(picture(1), format, save_all=True, append_images=[picture(2)], lossless=True)


RED = Image.new("RGB", (20, 20), (255, 0, 0))
GREY_16 = Image.fromarray(np.full((20, 20), 65535 // 2, np.uint16))
CLEAR = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
BAD = {
    "no bytes": b"",
    "no image": b"<html>404 Not Found</html>",
    "wrong magic": b"\x00\x01" + encode(RED)[2:],
    "cut JPEG": encode(picture(0, (64, 64)), "JPEG")[:900],
    "cut PNG": encode(picture(0, (64, 64)))[:900],
    "cut WebP": encode(picture(0, (64, 64)), "WEBP")[:900],
    "PNG header only": encode(RED)[:40],
    "GIF": encode(RED, "GIF"),
    "TIFF": encode(RED, "TIFF"),
    "BMP": encode(RED, "BMP"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD.keys())
def test_bytes_that_are_no_picture_are_refused_in_one_line(data):
    with pytest.raises(DataError) as error:
        preprocess(data, 16)
    assert "\n" not in str(error.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("side", [9_000, 12_000, 60_000])
def test_an_image_bomb_is_refused_at_its_header(side):
    with pytest.raises(DataError, match=r"pixels|Decompression"):
        preprocess(header_of_a_png(side, side), 16)


@pytest.mark.parametrize(
    ("data", "colour"),
    [
        (encode(RED), (255, 0, 0)),
        (encode(RED, "JPEG", quality=95, subsampling=0), (255, 0, 0)),
        (encode(RED, "WEBP", lossless=True), (255, 0, 0)),
        (encode(RED.convert("CMYK"), "JPEG", quality=95, subsampling=0), (255, 0, 0)),
        (encode(RED.convert("P", palette=Image.Palette.ADAPTIVE)), (255, 0, 0)),
        (encode(Image.new("L", (20, 20), 128)), (128, 128, 128)),
        (encode(Image.new("1", (20, 20), 1)), (255, 255, 255)),
        (encode(GREY_16), (127, 127, 127)),
        (encode(CLEAR), (255, 255, 255)),
        (encode(Image.new("LA", (20, 20), (0, 0))), (255, 255, 255)),
        (encode(Image.new("P", (20, 20), 0), transparency=0), (255, 255, 255)),
        (encode(Image.new("RGBA", (20, 20), (255, 0, 0, 128))), (255, 127, 127)),
        (encode(RED, pnginfo=None, icc_profile=b"not a profile"), (255, 0, 0)),
    ],
)
def test_every_mode_becomes_rgb(data, colour):
    found = np.asarray(open_image(data))
    assert found.shape == (20, 20, 3)
    assert np.abs(found.astype(int) - colour).max() <= 2


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_an_animation_gives_its_first_frame(format):
    np.testing.assert_array_equal(np.asarray(open_image(animation(format))), np.asarray(picture(1)))


@pytest.mark.parametrize("orientation", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
def test_pictures_stand_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = open_image(encode(picture(0, (12, 8)), exif=exif))
    assert found.size == ((8, 12) if orientation in (5, 6, 7, 8) else (12, 8))
    turned = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(
        orientation
    )
    if turned is not None:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(picture(0, (12, 8)).transpose(turned)))


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (3, 7), (16, 16), (500, 333), (16, 400)])
def test_every_size_becomes_a_square_of_the_resolution(size):
    found = preprocess(encode(picture(0, size)), 16)
    assert found.shape == (3, 16, 16) and found.dtype == torch.float32
    assert found.min() >= -1 and found.max() <= 1


def test_the_scale_keeps_the_aspect_and_the_draw_moves_the_crop():
    wide = Image.fromarray(np.tile(np.arange(0, 240, dtype=np.uint8)[None, :, None], (80, 1, 3)))
    left, centre, right = (preprocess(encode(wide), 80, crop=(u, 0.5))[0, 40] for u in (0.0, 0.5, 1.0))
    assert left[0] < left[79] < centre[0] + 2 / 255 and centre[79] < right[0] + 2 / 255
    torch.testing.assert_close(preprocess(encode(wide), 80, flip=True)[0, 40], centre.flip(0))


def test_a_picture_of_the_right_size_is_unchanged():
    image = picture(3, (16, 16))
    np.testing.assert_array_equal(np.asarray(to_pil(preprocess(encode(image), 16))), np.asarray(image))


def test_the_way_to_tensors_and_back_is_exact_for_every_byte():
    levels = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, 2))
    np.testing.assert_array_equal(np.asarray(to_pil(to_tensor(levels))), np.asarray(levels))
    assert to_tensor(levels).min() == -1 and to_tensor(levels).max() == 1
    assert np.asarray(to_pil(torch.full((3, 2, 2), 7.0))).max() == 255


def psnr(one: torch.Tensor, other: torch.Tensor) -> float:
    """In dB, of images in [-1, 1]."""
    return float(10 * torch.log10(4 / (one - other).square().mean()))


@pytest.mark.parametrize("size", [(800, 800), (1201, 803), (805, 1999)])
@pytest.mark.parametrize("crop", [(0.5, 0.5), (0.0, 1.0)])
def test_large_jpegs_decoded_at_a_fraction_look_the_same(size, crop):
    """Of the same square too, though a fraction of an odd size is none."""
    content = picture(0, (40, 40)).resize(size, Image.Resampling.BICUBIC)
    data = encode(content, "JPEG", quality=95)
    assert min(open_image(data, at_least=40).size) < 300
    assert psnr(preprocess(data, 40, crop), preprocess(open_image(data), 40, crop)) > 45


def test_a_jpeg_that_is_to_be_turned_is_decoded_in_full():
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encode(picture(0, (800, 600)), "JPEG", exif=exif), at_least=40).size == (600, 800)


@pytest.mark.parametrize("resolution", [32, 64, 128, 256])
def test_photographs_decoded_at_a_fraction_are_within_40_db_of_those_decoded_in_full(data_pack, resolution):
    """An error of 1 % of the range at worst; the median is above 50 dB."""
    compared = 0
    for path in sorted(data_pack("raw/formats").iterdir()):
        data = path.read_bytes()
        with suppress(DataError):
            full = open_image(data)
            if open_image(data, at_least=resolution).size != full.size:
                compared += 1
                assert psnr(preprocess(data, resolution), preprocess(full, resolution)) > 40, path.name
    assert compared >= 1


def test_damage_never_ends_in_anything_but_a_picture_or_a_data_error():
    rng = np.random.default_rng(0)
    for original in (encode(picture(0), "JPEG"), encode(picture(0)), encode(picture(0), "WEBP"), animation("PNG")):
        for _ in range(60):
            damaged = bytearray(original[: int(rng.integers(1, len(original) + 1))])
            damaged[int(rng.integers(len(damaged)))] ^= 1 << int(rng.integers(8))
            with suppress(DataError):
                assert preprocess(bytes(damaged), 8).shape == (3, 8, 8)


def test_the_resolution_must_fit_the_vae():
    check_resolution(64, 8)
    with pytest.raises(ConfigError, match="resolution=60 is not divisible by the VAE's factor 8. Set it to 56 or 64"):
        check_resolution(60, 8)
    with pytest.raises(ConfigError):
        check_resolution(0, 8)


def test_a_sample_without_a_picture_says_what_it_has():
    assert image_member({"txt": b"", "webp": b"w"}) == b"w"
    with pytest.raises(DataError, match="no image.*found txt, json"):
        image_member({"txt": b"", "json": b""})


def test_the_real_odd_ones_are_read_or_refused(data_pack):
    read = 0
    for path in sorted(data_pack("raw/formats").iterdir()):
        try:
            read += preprocess(path.read_bytes(), 64).shape == (3, 64, 64)
        except DataError as error:
            assert path.suffix.lower() in (".gif", ".csv"), f"{path.name}: {error}"
    assert read >= 45


def test_images_are_read_by_the_formats_of_the_shards_only():
    assert Image.open(io.BytesIO(encode(RED, "GIF"))).format == "GIF"  # Pillow alone would read it
    with pytest.raises(DataError):
        open_image(encode(RED, "GIF"))

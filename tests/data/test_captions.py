from __future__ import annotations

import codecs
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdscratch.data.captions import MAX_CHARACTERS, captions_of, choose, record_of


def read(**members: bytes) -> list[str]:
    return captions_of(members, record_of(members))


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (b"a red dog", "a red dog"),
        (b"  a\tred \r\n dog\n", "a red dog"),
        (codecs.BOM_UTF8 + "ein Hündchen".encode(), "ein Hündchen"),
        ("ein Hündchen".encode("latin-1"), "ein Hündchen"),
        ("ein Hündchen".encode("utf-16"), "ein Hündchen"),
        (b"a\x00 red\x00 dog\x07", "a red dog"),
        ("👩\u200d👩\u200d👧 at home".encode(), "👩\u200d👩\u200d👧 at home"),
        ("كلب أحمر".encode(), "كلب أحمر"),
        (b"x" * 2_000_000, "x" * MAX_CHARACTERS),
        (b"word " * 400_000, ("word " * 800).strip()),
        (b"", None),
        (b" \n\x00\t", None),
        (codecs.BOM_UTF8, None),
    ],
)
def test_a_text_file_gives_one_clean_line(found, expected):
    assert read(txt=found) == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"captions": ["one", " two ", ""]}, ["one", "two"]),
        ({"captions": "only one"}, ["only one"]),
        ({"captions": ["kept", None, 3, ["nested"], {"a": 1}]}, ["kept"]),
        ({"captions": []}, ["the text"]),
        ({"captions": [" ", ""]}, ["the text"]),
        ({"captions": 7}, ["the text"]),
        ({"captions": None}, ["the text"]),
        ({}, ["the text"]),
        (["captions"], ["the text"]),
    ],
)
def test_captions_of_the_record_win_over_the_text_file(fields, expected):
    assert read(json=json.dumps(fields).encode(), txt=b"the text") == expected


@pytest.mark.parametrize("damaged", [b"", b"{", b'{"captions": ["cut', b"\xff\xfe{", b"[" * 100_000, b"1" * 10_000])
def test_a_damaged_record_leaves_the_text_file(damaged):
    assert read(json=damaged, txt=b"the text") == ["the text"]


def test_half_characters_are_replaced_and_whole_ones_joined():
    assert read(json=rb'{"captions": ["a \ud83d b", "\ud83d\ude00"]}') == ["a \ufffd b", "😀"]


@settings(max_examples=60, deadline=None)
@given(st.one_of(st.binary(max_size=200), st.text(max_size=200).map(lambda t: t.encode("utf-8", "surrogatepass"))))
def test_any_bytes_give_clean_captions_or_none(data):
    for caption in read(txt=data) + read(json=data) + read(json=b'{"captions": ["' + data + b'"]}'):
        assert 0 < len(caption) <= MAX_CHARACTERS
        assert caption == " ".join(caption.split())
        assert "\0" not in caption
        caption.encode()


def test_the_draw_reaches_every_caption_equally():
    draws = (0.0, 0.33, 0.34, 0.66, 0.67, 1 - 2**-53)
    assert [choose(["a", "b", "c"], u) for u in draws] == [0, 0, 1, 1, 2, 2]

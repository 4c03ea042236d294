"""The tokenizer knows every text, forgets none of it, and is one that CLIPTokenizer loads."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from sdscratch.errors import DataError
from sdscratch.models.tokenizer import END, START, load_tokenizer, save_tokenizer, train_tokenizer

CAPTIONS = ["a red circle on a white background", "top: a blue ring, black background", "a red ring"] * 3
TOKENIZER = train_tokenizer(CAPTIONS, vocab_size=560, max_length=24)
TEXTS = st.text(max_size=40).filter(lambda text: "<|" not in text)  # the special tokens may be written out, as in CLIP


@given(TEXTS)
@example("日本語 🏳️‍🌈 \x00\ufeff\u200b e\u0301 ñ")
@settings(deadline=None)
def test_no_text_is_unknown(text):
    """An unknown letter would read as the end of the text."""
    ids = TOKENIZER(text).input_ids
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids[-1] == TOKENIZER.eos_token_id
    assert {TOKENIZER.bos_token_id, TOKENIZER.eos_token_id}.isdisjoint(ids[1:-1])
    assert max(ids) < len(TOKENIZER)


@given(st.text(alphabet="abcdefghijklmnopqrstuvwxyzäß漢🦊", min_size=1, max_size=20))
@settings(deadline=None)
def test_the_letters_of_a_word_can_be_read_back_from_its_tokens(word):
    assert TOKENIZER.decode(TOKENIZER(word).input_ids[1:-1]).replace(" ", "") == word


@pytest.mark.parametrize("text", ["", "a red circle", "very " * 1000])
def test_a_padded_text_has_the_length_of_the_model(text):
    ids = TOKENIZER(text, padding="max_length", truncation=True).input_ids
    assert len(ids) == TOKENIZER.model_max_length == 24
    assert ids[0] == TOKENIZER.bos_token_id
    assert ids[-1] == TOKENIZER.eos_token_id
    assert TOKENIZER.pad_token_id == TOKENIZER.eos_token_id


def test_frequent_words_are_one_token_and_case_does_not_count():
    assert len(TOKENIZER("red ring").input_ids) == 4
    assert TOKENIZER("Red  RING").input_ids == TOKENIZER("red ring").input_ids
    assert TOKENIZER("red, ring").input_ids != TOKENIZER("red ring").input_ids


def test_the_vocabulary_has_no_holes_and_at_most_the_size_asked_for():
    assert 514 < len(TOKENIZER) <= 560
    assert sorted(TOKENIZER.get_vocab().values()) == list(range(len(TOKENIZER)))
    assert TOKENIZER.convert_tokens_to_ids([START, END]) == [0, 1]


def test_training_again_gives_the_same_tokenizer_though_many_pairs_are_equally_frequent():
    for _ in range(20):
        again = train_tokenizer(iter(CAPTIONS), vocab_size=540, max_length=24)
        assert again.get_vocab().items() <= TOKENIZER.get_vocab().items()


def test_a_vocabulary_too_small_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="max_length is 2, but start, a word and end need 3"):
        train_tokenizer(["a"], 600, max_length=2)
    with pytest.raises(ValueError, match="vocab_size is 513, but the bytes alone need 514"):
        train_tokenizer(CAPTIONS, vocab_size=513)
    assert len(train_tokenizer(CAPTIONS, vocab_size=514)) == 514


@pytest.mark.parametrize("files", ["all", "those of older readers"])
def test_a_saved_tokenizer_loads_in_transformers_and_gives_the_same_ids(tmp_path, files):
    save_tokenizer(TOKENIZER, tmp_path)
    if files != "all":
        (tmp_path / "tokenizer.json").unlink()
    texts = [*CAPTIONS, "Ünseen wörds, 漢字!", ""]
    for loaded in (CLIPTokenizer.from_pretrained(tmp_path), load_tokenizer(tmp_path)):
        assert loaded.model_max_length == 24
        assert loaded(texts).input_ids == TOKENIZER(texts).input_ids


def test_a_tokenizer_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="no tokenizer in .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")

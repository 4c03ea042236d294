"""A CLIP tokenizer trained on one's own captions: byte-level BPE that any CLIPTokenizer loads, and that knows every byte."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import pre_tokenizers, trainers
from transformers import CLIPTokenizer

from sdscratch.errors import DataError

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"


def train_tokenizer(captions: Iterable[str], vocab_size: int, max_length: int = 77) -> CLIPTokenizer:
    """Learn up to `vocab_size` tokens from captions: 2 special ones, 512 for bytes (inside and at the end of a word), merges.

    With all bytes in the vocabulary no text is unknown; without them an unknown letter would read as the end of the text,
    which is also where CLIP looks for the pooled state.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    last_letters = [letter + WORD_END for letter in alphabet]
    base = [START, END, *alphabet, *last_letters]
    if vocab_size < len(base):
        raise ValueError(f"vocab_size is {vocab_size}, but the bytes alone need {len(base)}")
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}, but start, a word and end need 3")
    learner = CLIPTokenizer().backend_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=alphabet,
        special_tokens=last_letters,  # else they are numbered at random, and equally frequent pairs merge in that order
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]][: vocab_size - len(base)]
    tokens = dict.fromkeys([*base, *("".join(pair) for pair in merges)])  # two merges may spell one token
    vocab = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def save_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Write tokenizer.json and, for older readers, vocab.json and merges.txt."""
    tokenizer.save_pretrained(folder)
    tokenizer.backend_tokenizer.model.save(str(folder))


def load_tokenizer(folder: str | Path) -> CLIPTokenizer:
    """Read a tokenizer folder. Raises DataError when there is none, or it is damaged."""
    if not Path(folder).is_dir():
        raise DataError(
            f"no tokenizer in {folder}: expected a folder with tokenizer.json, or vocab.json and merges.txt"
        )
    return read_tokenizer(folder)


def read_tokenizer(path: str | Path) -> CLIPTokenizer:
    """From a folder or a hub id in the local cache. Raises DataError when it cannot be read."""
    try:
        return CLIPTokenizer.from_pretrained(path, local_files_only=True)
    except Exception as error:  # damaged files raise nearly anything
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise DataError(f"{path} holds no tokenizer that can be read ({reason}). Restore it.") from error

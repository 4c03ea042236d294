"""What each rule keeps, asked of DuckDB itself."""

from __future__ import annotations

from typing import Any

import duckdb
import pytest

from sdscratch.errors import ConfigError
from sdscratch.prepare.filter.rules import Rules


def keeps(row: dict[str, Any], **rules: Any) -> bool:
    """Whether the rules, but for that of the address, keep a row."""
    columns = ", ".join(f"${name} AS {name}" for name in row)
    tests = [f"coalesce({rule.keeps}, false)" for rule in Rules(**rules).of_rows() if rule.name != "address"]
    query = f"SELECT {' AND '.join(tests)} FROM (SELECT {columns})"
    return duckdb.execute(query, row).fetchall()[0][0]


@pytest.mark.parametrize(
    ("rules", "kept", "fallen"),
    [
        ({"min_aesthetic": 6.5}, [{"aesthetic": 6.5}], [{"aesthetic": 6.49}, {"aesthetic": None}]),
        ({"min_similarity": 0.28}, [{"similarity": 0.28}], [{"similarity": 0.27}, {"similarity": None}]),
        (
            {"min_side": 512},
            [{"width": 512, "height": 512}],
            [{"width": 511, "height": 900}, {"width": 900, "height": 511}, {"width": 900, "height": None}],
        ),
        ({"min_aspect": 0.5}, [{"width": 1, "height": 2}], [{"width": 49, "height": 100}, {"width": 0, "height": 0}]),
        ({"max_aspect": 2.0}, [{"width": 2, "height": 1}], [{"width": 201, "height": 100}, {"width": 5, "height": 0}]),
        ({"watermark_below": 0.15}, [{"pwatermark": 0.149}], [{"pwatermark": 0.15}, {"pwatermark": None}]),
        ({"unsafe_below": 0.2}, [{"punsafe": 0.0}], [{"punsafe": 0.5}, {"punsafe": None}]),
        ({"min_characters": 3}, [{"caption": "été"}], [{"caption": "ab"}, {"caption": None}]),
        ({"max_characters": 3}, [{"caption": "\U0001f431" * 3}], [{"caption": "abcd"}]),
        ({"min_words": 3}, [{"caption": "a big cat"}], [{"caption": "big cat"}, {"caption": ""}]),
        (
            {"languages": ["en", "DE"]},
            [{"language": "EN"}, {"language": "de"}],
            [{"language": "fr"}, {"language": None}],
        ),
    ],
)
def test_a_rule_keeps_what_it_says_up_to_its_limit_and_nothing_unknown(rules, kept, fallen):
    assert [keeps(row, **rules) for row in kept] == [True] * len(kept)
    assert [keeps(row, **rules) for row in fallen] == [False] * len(fallen)


WORDS = ["putin", "messi", "Elon  Musk", "naïve", "порно", "ज़ेब", "o'neill"]


@pytest.mark.parametrize(
    "caption",
    [
        "computing for all",
        "a messianic figure",
        "elon and musk",
        "naïveté",
        "Mélonmusk",
        "порношив",
        "messié",  # with an accent of its own, which is a part of the letter
        "messie\u0301",
        "9messi9",
        "",
    ],
)
def test_parts_of_words_are_no_words(caption):
    assert keeps({"caption": caption}, words={"w": WORDS})


@pytest.mark.parametrize(
    "caption",
    [
        "putin",
        "PUTIN!",
        "a portrait of Putin's dog",
        "(messi)",
        "messi_2022.jpg",
        "Elon-Musk",
        "photo: elon musk, smiling",
        "so na\u00efve",
        "so NAI\u0308VE",
        "ПОРНО",
        "das \u201emessi\u201c",
        "メッシ・messi・サッカー",
        "O'Neill at home",
        "ज़ेब में",
    ],
)
def test_whole_words_and_phrases_are_found_in_every_script_and_case(caption):
    assert not keeps({"caption": caption}, words={"w": WORDS})


def test_word_lists_are_rules_of_their_own_in_their_sequence_after_the_others():
    rules = Rules(min_words=3, min_side=9, words={"b": ["x"], "a": ["y"]}, languages=["en"])
    assert [rule.name for rule in rules.of_rows()] == ["address", "min_side", "min_words", "languages", "b", "a"]


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"min_side": 0}, "rules.min_side is 0: expected a whole number of at least 1"),
        ({"max_rows": 2.5}, "rules.max_rows is 2.5"),
        ({"min_aspect": 2.0, "max_aspect": 0.5}, "no row can fit both"),
        ({"words": {"w": []}}, "rules.words.w is .*expected words"),
        ({"words": {"w": ["!?"]}}, "rules.words.w is .*expected words"),
        ({"words": {"min_side": ["x"]}}, "rules.words.min_side: a rule has that name already"),
        ({"min_aesthetic": float("nan")}, "rules.min_aesthetic is nan"),
    ],
)
def test_rules_that_cannot_work_are_refused(rules, said):
    with pytest.raises(ConfigError, match=said):
        Rules(**rules)

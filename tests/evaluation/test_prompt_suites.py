"""Published lists of prompts are read as they are published."""

import os
from collections import Counter
from pathlib import Path

import pytest

from sdscratch.errors import ConfigError, DataError
from sdscratch.evaluation import prompt_suites
from sdscratch.evaluation.prompt_suites import Prompt

PACK = Path(os.environ.get("SDSCRATCH_DATA_PACK", Path(__file__).parents[3] / "shared" / "data"))
PARTI = "Prompt\tCategory\tChallenge\tNote\n"


def of_pack(name: str) -> str:
    if not (PACK / "prompts" / name).exists():
        pytest.skip(f"no prompts/{name} in {PACK}: set SDSCRATCH_DATA_PACK")
    return str(PACK / "prompts" / name)


def test_partiprompts_as_published():
    found = prompt_suites.parti_prompts(of_pack("PartiPrompts.tsv"))
    kinds = Counter(prompt.category for prompt in found)
    assert len(found) == 1632 and len(kinds) == 12 and kinds["Abstract"] == 51
    by_challenge = prompt_suites.parti_prompts(of_pack("PartiPrompts.tsv"), by="Challenge")
    assert {prompt.category for prompt in by_challenge} >= {"Basic", "Complex", "Quantity"}


def test_drawbench_as_a_list_in_the_papers_order():
    found = prompt_suites.drawbench(of_pack("drawbench.txt"))
    assert found[0] == Prompt("A red colored car.", "colours")
    assert Counter(prompt.category for prompt in found) == prompt_suites.DRAWBENCH_ORDER


def test_geneval_and_compbench_as_published():
    geneval = prompt_suites.geneval(of_pack("geneval/evaluation_metadata.jsonl"))
    assert len(geneval) == 553 and len({prompt.category for prompt in geneval}) == 6
    compbench = prompt_suites.t2i_compbench(of_pack("t2i-compbench"))
    kinds = Counter(prompt.category for prompt in compbench)
    assert set(kinds) >= {"color", "shape", "texture", "spatial", "non_spatial", "numeracy", "complex"}
    assert kinds["color"] == 300


def test_a_part_of_a_list_keeps_the_shares_of_its_categories(tmp_path):
    file = tmp_path / "parti.tsv"
    file.write_text(PARTI + "".join(f"prompt {i}\t{'A' if i < 60 else 'B'}\tBasic\t\n" for i in range(90)))
    found = prompt_suites.parti_prompts(str(file), count=30)
    assert Counter(prompt.category for prompt in found) == {"A": 20, "B": 10}


def test_a_quotation_mark_in_a_prompt_stays(tmp_path):
    file = tmp_path / "parti.tsv"
    file.write_text(PARTI + 'a sign that says "NO\tWorld\tBasic\t\nnext\tWorld\tBasic\t\n')
    assert [prompt.text for prompt in prompt_suites.parti_prompts(str(file))] == ['a sign that says "NO', "next"]


def test_drawbench_as_csv(tmp_path):
    file = tmp_path / "drawbench.csv"
    file.write_text('Prompts,Category\n"a, b",Colors\n')
    assert prompt_suites.drawbench(str(file)) == [Prompt("a, b", "Colors")]


@pytest.mark.parametrize(
    ("suite", "content", "said"),
    [
        ("lines", b"", "holds no prompts"),
        ("lines", b"\xff\xfe\x00", "it is no text in UTF-8"),
        ("parti_prompts", b"Prompt,Category\na,b\n", "is no PartiPrompts file"),
        ("parti_prompts", PARTI.encode() + b"\tWorld\tBasic\t\n", "prompt 1 is empty"),
        ("drawbench", b"one\ntwo\n", "holds 2 prompts, DrawBench has 200"),
        ("geneval", b'{"prompt": "a"}\nnope\n', "line 2: expected a JSON object"),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_line(tmp_path, suite, content, said):
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    with pytest.raises(DataError) as refusal:
        getattr(prompt_suites, suite)(str(file))
    assert said in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_is_not_there_is_refused(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        prompt_suites.lines(str(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="holds no"):
        prompt_suites.t2i_compbench(str(tmp_path))
    with pytest.raises(ConfigError, match="set path=FOLDER"):
        prompt_suites.captions(None, 5)

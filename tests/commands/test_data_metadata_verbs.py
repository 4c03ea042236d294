"""`sdscratch data filter` and `sdscratch data fetch`, as they are called."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sdscratch.cli import main

ROWS = """\
URL,TEXT,WIDTH,HEIGHT,similarity,punsafe,pwatermark,AESTHETIC_SCORE
https://a.org/1,a lighthouse above a stormy sea,800,600,0.31,0.01,0.1,7.1
https://a.org/2,a small boat in a quiet harbour,800,600,0.33,0.01,0.1,4.2
https://a.org/1,a lighthouse above a stormy sea,800,600,0.31,0.01,0.1,7.1
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    (tmp_path / "rows.csv").write_text(ROWS)
    return tmp_path / "rows.csv"


def refusal(capsys: pytest.CaptureFixture[str], *words: str, exit_code: int = 2) -> str:
    assert main(["data", *words]) == exit_code
    said = capsys.readouterr()
    assert said.err.startswith("sdscratch: ") and len(said.err.splitlines()) == 1
    return said.err


def test_filter_says_what_stayed_and_what_fell_to_what(rows, tmp_path, capsys):
    assert main(["data", "filter", "rules=laion_broad", f"path={rows}", f"out={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr()
    assert said.out == f"{tmp_path / 'out'}: 1 of 3 rows kept; fell: 1 to min_aesthetic, 1 to unique_url\n"
    assert said.err == ""
    funnel = json.loads((tmp_path / "out" / "funnel.json").read_text())
    assert funnel["made_by"]["rules"]["min_aesthetic"] == 6.5 and funnel["rows"] == 3 and funnel["kept"] == 1
    assert (tmp_path / "out" / "funnel.png").read_bytes().startswith(b"\x89PNG")
    assert "| min_aesthetic = 6.5 | 1 | 33.33% | 2 |" in (tmp_path / "out" / "funnel.md").read_text()


def test_a_rule_that_is_skipped_is_a_warning(rows, tmp_path, capsys):
    rows.write_text(ROWS.replace("AESTHETIC_SCORE", "beauty"))
    words = ["data", "filter", "rules=laion_refined", f"path={rows}", f"out={tmp_path / 'out'}"]
    assert main([*words, "on_missing=skip"]) == 0
    assert capsys.readouterr().err == "warning: min_aesthetic was not applied to 3 rows, which have no aesthetic\n"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("path=nowhere", "nowhere does not exist: expected metadata"),
        ("out=", "out is empty"),
        ("rules.min_aesthetics=5", "did you mean 'rules.min_aesthetic'"),
        ("rules.min_aesthetic=pretty", "rules.min_aesthetic"),
        ("rules.min_aesthetic=9", "no row is left of 3: most fell 3 to min_aesthetic"),
        ("rules.languages=[en]", "the rule languages needs a column language (or lang)"),
        ("on_missing=ignore", "on_missing='ignore' is unknown"),
        ("memory=lots", "memory='lots' is no size"),
        ("engine=spark", "engine='spark' is unknown; expected local or ray"),
        ("rules=best", "laion_broad"),
    ],
)
def test_what_cannot_be_filtered_is_one_line_and_exit_code_2(rows, tmp_path, capsys, override, said):
    words = ["filter", f"path={rows}", f"out={tmp_path / 'out'}", override]
    assert main(["data", *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out" / "funnel.json").exists()


def test_a_place_that_cannot_be_written_gives_exit_code_4(rows, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "file" in refusal(capsys, "filter", f"path={rows}", f"out={tmp_path / 'file' / 'out'}", exit_code=4)
    words = ["fetch", "source=diffusiondb", "source.patterns=[rows.csv]", f"mirror={tmp_path}"]
    assert "file" in refusal(capsys, *words, f"out={tmp_path / 'file' / 'out'}", exit_code=4)


def test_neither_verb_loads_torch():
    code = (
        "import sys; from sdscratch.cli import main; import sdscratch.commands.data_fetch, sdscratch.commands.data_filter; "
        "main(['data', 'filter', 'path=nowhere', 'out=x']); assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL).returncode == 0


@pytest.mark.parametrize("source", ["coco", "diffusiondb", "journeydb", "laion"])
def test_every_source_says_its_licence_and_status(source, tmp_path, capsys):
    assert main(["data", "fetch", f"source={source}", "out=x", "--cfg", "job"]) == 0
    said = capsys.readouterr().out
    assert "licence: " in said and "status: " in said


def test_fetch_from_a_mirror_asks_nobody_without_a_terminal(tmp_path, capsys, monkeypatch):
    for name in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        (tmp_path / "mirror" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mirror" / name).write_bytes(b"pictures")
    words = ["data", "fetch", "source=coco", f"mirror={tmp_path / 'mirror'}", f"out={tmp_path / 'out'}"]
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    assert main(words) == 0
    assert capsys.readouterr().out.endswith("/out: 3 files, 24 B, checked\n")
    assert (tmp_path / "out" / "val2017.zip").read_bytes() == b"pictures"
    assert main([*words, "yes=true"]) == 0


def test_fetch_asks_at_a_terminal_and_takes_no_for_an_answer(tmp_path, capsys, monkeypatch):
    for name in ("annotations_trainval2017.zip", "train2017.zip", "val2017.zip"):
        (tmp_path / name).touch()
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", lambda question: "n")
    assert main(["data", "fetch", "source=coco", f"mirror={tmp_path}", f"out={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.endswith("nothing was fetched\n") and not (tmp_path / "out").exists()

"""What is left empty on the command line is never taken for this folder, and null is nothing."""

from __future__ import annotations

import pytest

from sdscratch.cli import main
from sdscratch.commands.bench import writable
from sdscratch.commands.evaluated import Subject
from sdscratch.config import compose, quoted


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("data pack kind=folder path= out=x", "path is empty: expected a file or a folder, `.` for this one"),
        ("data pack kind=webdataset path=", "path is empty"),
        ("data pack kind=folder path=. out=null", "out is empty: expected a folder, `.` for this one"),
        (f"data pack path={'y' * 300} out=x", "yyy cannot be read: File name too long"),
        ("data filter path= out=x", "path is empty"),
        ("data download path= out=x", "path is empty"),
        ("data download path=. out=x engine=img2dataset img2dataset_python=", "img2dataset_python is empty"),
        ("data select path= out=x where=true", "path is empty"),
        ("data encode path= out=x model=vae", "path is empty"),
        ("data encode path=. out=x model=", "model is empty: expected a run, a model folder or a hub id"),
        ("data encode path=. out=x model=null", "model is empty"),
        ("data verify path=", "path is empty"),
        ("data stats path= out=x", "path is empty"),
        ("data stats path=. out=x model=null", "no shards in ."),  # null is none, as it is in the file
        ("data dedup path=. out=null", "no shards in ."),
        ("data dedup path=", "path is empty"),
        ("data dedup path=. against=['']", "against is ['']: expected folders"),
        ("sample prompt=a out=", "out is empty: expected a folder"),
        ("sample prompt=a out=null", "out is empty"),
        ("import path= out=x", "path is empty: expected a model folder, a file of weights"),
        ("evaluate compare evaluations=[a,b] out=null", "out is empty: expected a file"),
        ("data fetch source=coco out=x mirror=", "mirror is empty: expected a folder"),
    ],
)
def test_nothing_is_not_this_folder(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jpg").touch()
    (tmp_path / "rows.csv").write_text("url,caption\nhttp://a/,b\n")
    assert main(words.split()) == 2
    said_so = capsys.readouterr().err
    assert said in said_so and len(said_so.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jpg", "rows.csv"]


def test_null_is_nothing_also_where_a_verb_has_a_place_of_its_own(tmp_path):
    words = quoted("evaluate", ["model=runs/mine", "out=null", "path=null"])
    subject = Subject(compose("evaluate", words))
    assert subject.path is None and str(subject.out) == "evaluations/mine"
    assert writable(compose("bench", quoted("bench", ["out=null"])), str(tmp_path / "own")) == tmp_path / "own"

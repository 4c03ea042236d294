"""Settings with which a service cannot be what they say: one line, before anything is loaded."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from sdscratch.cli import main
from sdscratch.run_folder import RunFolder


@pytest.fixture(autouse=True)
def signals() -> Iterator[None]:
    """As they were."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("host=a..b", "cannot listen at host=a..b"),
        (f"host={'x' * 70}", "label too long"),
        ("hosts=[example.org:8000]", "without a port"),
        ("hosts=[https://example.org]", "hosts has https://example.org"),
        ("cors=[example.org]", "cors has example.org"),
        ("cors=[https://example.org/]", "without a path"),
        ("cors=[null]", "cors has None"),
        ("limits=null", "limits is null"),
        ("limits.max_side=8", "limits.max_side is 8"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(tiny_run: RunFolder, capsys, setting, said):
    assert main(["serve", f"model={tiny_run.path}", "port=0", setting]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


@pytest.mark.parametrize("token", ["two words", " ", "a\n", "é", "\udcff"])
def test_a_token_that_no_caller_could_send_is_refused(tiny_run: RunFolder, capsys, monkeypatch, token):
    monkeypatch.setenv("SDSCRATCH_TOKEN", token)
    assert main(["serve", f"model={tiny_run.path}", "port=0"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("sdscratch: SDSCRATCH_TOKEN holds what no header can")

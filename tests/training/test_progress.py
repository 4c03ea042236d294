"""What is said while a run trains."""

from __future__ import annotations

import re
import sys

import pytest
from tiny import SMALLER

from sdscratch.commands.train import train
from sdscratch.errors import ConfigError
from sdscratch.training import ProgressBar

LINE = re.compile(
    r"LatentDiffusion: step (\d+)/4  loss (\d\.\d{4})  lr (\S+)  (\d+\.\d) samples/s  data wait (\d+)%  "
    r"(\d+:\d\d:\d\d) left(?:, (\S+) with later phases)?"
)


def seconds(text: str) -> int:
    hours, minutes, rest = text.split(":")
    return 3600 * int(hours) + 60 * int(minutes) + int(rest)


def test_a_line_per_interval_says_loss_rate_waiting_and_the_time_left_of_phase_and_curriculum(tiny_config, capsys):
    run = train(tiny_config(*SMALLER, "max_steps=4", "callbacks.progress={every: 2, later_steps: 2000}"))
    lines = [
        LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines() if line.startswith("LatentDiffusion")
    ]
    assert [int(line[1]) for line in lines] == [2, 4]
    rows = {row["step"]: row for row in run.read_metrics()}
    for line in lines:
        row = rows[int(line[1])]
        assert float(line[2]) == pytest.approx(row["train/loss"], abs=1e-4)
        assert float(line[3]) == pytest.approx(row["lr"], rel=0.01)
        assert seconds(line[7]) > seconds(line[6])
    assert seconds(lines[1][6]) == 0


def test_a_run_without_later_phases_speaks_of_itself_alone(tiny_config, capsys):
    train(tiny_config(*SMALLER, "max_steps=4", "callbacks.progress.every=4"))
    (line,) = [
        LINE.fullmatch(line) for line in capsys.readouterr().out.splitlines() if line.startswith("LatentDiffusion")
    ]
    assert line[7] is None


def test_on_a_terminal_a_bar_shows_the_same(tiny_config, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    train(tiny_config(*SMALLER, "max_steps=4", "callbacks.progress.every=2"))
    said = capsys.readouterr()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.err)
    assert "4/4" in shown and "samples/s" in shown and "data wait" in shown and "lr " in shown
    assert "step 2/4" not in said.out


@pytest.mark.parametrize("steps", [-1, 0.5, True])
def test_later_steps_are_a_whole_number(steps):
    with pytest.raises(ConfigError, match="later_steps"):
        ProgressBar(every=1, later_steps=steps)

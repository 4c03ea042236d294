"""The numbers of a run that grows: what is read of them at each look, and how many are kept."""

from __future__ import annotations

import math
import tracemalloc
from pathlib import Path

import pytest

from sdscratch.run_folder import LONGEST_LINE, RunFolder
from sdscratch.serving import metrics as module
from sdscratch.serving.metrics import MOST, Column, Metrics, thinned


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.create()
    for step in range(1, 101):
        run.append_metrics({"step": step, "train/loss": 1 / step})
    return run


@pytest.fixture
def lines_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every line that was looked into for its numbers."""
    lines: list[str] = []
    monkeypatch.setattr(module, "as_row", lambda names, line: lines.append(line) or as_row(names, line))
    return lines


as_row = module.as_row


def losses(metrics: Metrics) -> list[tuple[int, float | None]]:
    return metrics.series(MOST)["train/loss"]


def test_another_look_reads_what_was_written_since(run, lines_read):
    metrics = Metrics(run.metrics_file)
    assert len(losses(metrics)) == len(lines_read) == 100
    lines_read.clear()
    assert len(losses(metrics)) == 100 and lines_read == []
    run.append_metrics({"step": 101, "train/loss": 0.25})
    with run.metrics_file.open("a") as file:
        file.write("102,0.")  # is being written just now
    assert losses(metrics)[-1] == (101, 0.25) and lines_read == ["101,0.25"]
    with run.metrics_file.open("a") as file:
        file.write("125\n")
    assert losses(metrics)[-1] == (102, 0.125) and lines_read == ["101,0.25", "102,0.125"]


def one_more_column(run: RunFolder) -> None:
    run.append_metrics({"step": 101, "train/loss": 0.5, "val/loss": 0.5})


def turned_back(run: RunFolder) -> None:
    run.cut_metrics(50)


def cut_and_grown_again_in_place(run: RunFolder) -> None:
    head, *lines = run.metrics_file.read_text().splitlines(keepends=True)
    run.metrics_file.write_text("".join([head, *lines[50:], *lines]))


def begun_again_in_place(run: RunFolder) -> None:
    run.metrics_file.write_text("step,train/loss\n1,0.5\n")


def gone(run: RunFolder) -> None:
    run.metrics_file.unlink()


@pytest.mark.parametrize(
    "change", [one_more_column, turned_back, cut_and_grown_again_in_place, begun_again_in_place, gone]
)
def test_a_file_that_is_another_now_is_read_anew(run, change):
    metrics = Metrics(run.metrics_file)
    metrics.series(MOST)
    change(run)
    assert metrics.series(MOST) == Metrics(run.metrics_file).series(MOST)


@pytest.mark.parametrize("head", ["step,loss\n", "step,lo\rss\n", "\nstep,loss\n", "step,loss\n0,1\x0b"])
def test_a_damaged_file_is_at_every_look_what_the_run_folder_reads_in_it(run, head):
    run.metrics_file.write_bytes(head.encode())
    metrics = Metrics(run.metrics_file)
    for line in ("1,2\n", "2,3\n"):
        with run.metrics_file.open("a") as file:
            file.write(line)
        rows = run.read_metrics()
        names = {name for row in rows for name in row} - {"step"}
        assert metrics.series(MOST) == {name: [(row["step"], row[name]) for row in rows] for name in names}


def test_a_line_without_end_is_read_once_and_not_kept(run):
    metrics, peaks, rest = Metrics(run.metrics_file), [], b"9" * LONGEST_LINE * 20
    for _ in range(2):
        with run.metrics_file.open("ab") as file:
            file.write(rest)
        tracemalloc.start()
        assert len(losses(metrics)) == 100
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert run.metrics_file.stat().st_size - metrics._read <= LONGEST_LINE
    assert max(peaks) < len(rest) / 2
    with run.metrics_file.open("a") as file:
        file.write(",9\n101,0.25\n")
    assert losses(metrics)[100:] == [(101, 0.25)]


def test_a_long_run_is_kept_in_few_points_that_have_its_mean_and_its_end():
    column, rows = Column(), 5 * MOST + 7
    for step in range(rows):
        column.add(step, float(step))
    points = column.points()
    assert MOST / 2 <= len(points) <= MOST
    assert points[-1][0] == rows - 1
    assert sum(value for _, value in points[:-1]) / (len(points) - 1) == (points[-2][0]) / 2
    column.add(rows, math.nan)
    assert thinned(column.points(), 10)[-1] == (rows, None)


@pytest.mark.parametrize(("count", "points"), [(0, 5), (1, 1), (5, 5), (6, 5), (1001, 800)])
def test_a_thinned_series_keeps_its_mean_and_its_end_and_the_number_asked_for(count, points):
    series = [(step, float(step)) for step in range(count)]
    thin = thinned(series, points)
    assert len(thin) <= points
    assert thin[-1:] == [] if not count else thin[-1][0] == count - 1
    if count <= points:
        assert thin == series

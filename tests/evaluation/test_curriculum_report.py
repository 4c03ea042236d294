"""The page about a curriculum shows what its runs' files say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sdscratch.evaluation.curriculum_report import PhaseResult, draw_curves, draw_forgetting, write_report
from sdscratch.run_folder import RunFolder

LOSSES = {"p1": {"p1": 0.5, "p2": 0.8}, "p2": {"p1": 0.75, "p2": 0.4}}


def run_with(path: Path, rows: list[dict[str, float]]) -> RunFolder:
    run = RunFolder(path)
    run.create()
    for row in rows:
        run.append_metrics(row)
    return run


def phases(tmp_path: Path) -> list[PhaseResult]:
    """A VAE stage and two diffusion phases, the second of which goes on counting samples where the first has ended."""
    curve = [{"step": s, "samples_seen": 4.0 * s, "train/loss_unweighted": 1 / s, "lr": 1e-4} for s in (1, 2, 3)]
    later = [{**row, "samples_seen": row["samples_seen"] + 12, "val/loss": 0.25} for row in curve]
    return [
        PhaseResult("s1", run_with(tmp_path / "s1", [{"step": 1, "samples_seen": 4, "val/psnr": 21.5}])),
        PhaseResult("p1", run_with(tmp_path / "p1", curve), {"status": "done", "samples_seen": 12}),
        PhaseResult("p2", run_with(tmp_path / "p2", later), {"status": "done"}, Image.new("RGB", (8, 8), "red")),
    ]


def test_the_page_holds_every_phase_and_only_pictures_that_are_there(tmp_path):
    found = phases(tmp_path / "runs")
    page = write_report(tmp_path, "a <b> chain", found, LOSSES)
    text = page.read_text()
    assert "a &lt;b&gt; chain" in text and "val/psnr 21.5" in text and "val/loss 0.25" in text
    linked = {part.partition('"')[0] for part in text.split('src="')[1:]}
    assert linked == {"report/curves.png", "report/forgetting.png", "report/p2.png"}
    assert all(Image.open(tmp_path / name).size[0] >= 8 for name in linked)


def test_curves_go_on_from_phase_to_phase_and_leave_other_stages_out(tmp_path):
    training = draw_curves(phases(tmp_path)).axes[0]
    assert [list(line.get_xdata()) for line in training.lines] == [[4, 8, 12], [16, 20, 24]]
    assert [line.get_label() for line in training.lines] == ["p1", "p2"]


def test_cells_say_the_loss_and_redden_with_what_was_forgotten():
    panel = draw_forgetting(LOSSES).axes[0]
    assert [text.get_text() for text in panel.texts] == ["0.5000", "0.8000", "0.7500", "0.4000"]
    np.testing.assert_allclose(panel.images[0].get_array(), [[0, 100], [50, 0]], atol=1e-9)


def test_a_cell_is_empty_where_a_network_was_asked_something_else():
    panel = draw_forgetting({"p1": {"p1": 0.5}, "p8": {"p8": 0.25}}).axes[0]
    assert [text.get_text() for text in panel.texts] == ["0.5000", "0.2500"]

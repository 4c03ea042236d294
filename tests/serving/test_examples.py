"""What a model can be asked for, by its own training."""

from __future__ import annotations

import os
from pathlib import Path

from sdscratch.run_folder import RunFolder
from sdscratch.serving.examples import examples_of


def test_a_model_comes_with_the_prompts_of_its_training_where_they_are_known(tiny_run: RunFolder, tmp_path: Path):
    prompts = examples_of(str(tiny_run.path))
    assert "a red circle in the centre on a white background" in prompts
    assert examples_of(str(tiny_run.checkpoints()[-1].path)) == prompts
    assert examples_of(str(tiny_run.model_folder)) == examples_of("owner/name") == []
    for damage in ("stage: [", "stage:", "- stage", ""):
        (tmp_path / "config.yaml").write_text(damage)
        assert examples_of(str(tmp_path)) == []
    (tmp_path / "config.yaml").unlink()
    os.mkfifo(tmp_path / "config.yaml")
    assert examples_of(str(tmp_path)) == []

"""`sdscratch quickstart`: what a second call does not do again."""

from __future__ import annotations

import shutil

from sdscratch.commands.quickstart import PICTURES, sample_and_score
from sdscratch.run_folder import RunFolder


def test_pictures_are_drawn_again_only_for_another_model_or_other_prompts(tiny_run, tmp_path, capsys):
    folder = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_run.model_folder, folder.model_folder)
    first = sample_and_score(folder, 2, 2, {})
    assert 0 <= first["all"] <= 1 and 0 <= first["unseen_all"] <= 1 and (folder.path / PICTURES).is_file()
    assert sample_and_score(folder, 2, 2, first) == {} and "nothing to do" in capsys.readouterr().out
    assert sample_and_score(folder, 1, 2, first) != {}
    (folder.model_folder / "sdscratch.json").open("a").write(" ")
    assert sample_and_score(folder, 2, 2, first) != {}
    (folder.path / PICTURES).unlink()
    assert sample_and_score(folder, 2, 2, first) != {} and (folder.path / PICTURES).is_file()

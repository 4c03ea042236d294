"""Keys of services stay where they are: in no file that a run leaves."""

from __future__ import annotations

import secrets
import sys

import pytest
import wandb_servers

from sdscratch.cli import main
from sdscratch.training.tracking import WandbTracker


@pytest.fixture
def canaries(monkeypatch) -> dict[str, str]:
    """Secrets of this test alone, in the environment as users have them there."""
    names = ("WANDB_API_KEY", "HF_TOKEN", "MY_PASSWORD")
    found = {name: f"canary{secrets.token_hex(17)}" for name in names}
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    return found


def test_no_file_of_a_run_holds_a_secret(canaries, tmp_path, tiny_data, monkeypatch):
    """Not one given by interpolation, not one that the shell has put into an override, not one that wandb knows."""
    import wandb

    words = [
        "train",
        *("experiment=tiny", f"paths.runs={tmp_path}", f"paths.data={tiny_data}", "threads=1", "max_steps=2"),
        *("logger=default", "callbacks.plots=null"),
        "stage.preview_prompts=['${oc.env:WANDB_API_KEY}', 'with ${oc.env:HF_TOKEN}', " + canaries["MY_PASSWORD"] + "]",
    ]
    wandb.teardown()
    monkeypatch.setattr(sys, "argv", ["sdscratch", *words])
    assert main(words) == 0
    wandb.teardown()
    run = tmp_path / "tiny"
    assert len([*run.rglob("*.wandb")]) == 1
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > 15
    for name, value in canaries.items():
        for form in (value.encode(), value.encode().hex().encode(), value.encode("utf-16-le")):
            assert [str(path.relative_to(run)) for path in files if form in path.read_bytes()] == [], name


def test_a_key_that_is_refused_is_written_nowhere(canaries, tmp_path, monkeypatch, capsys):
    """Neither by the attempt to use it, nor by the warning, nor by what is kept off line instead."""
    import wandb

    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    with wandb_servers.server(401) as serving:
        monkeypatch.setenv("WANDB_BASE_URL", serving.address)
        tracker = WandbTracker(str(tmp_path), "try1")
        tracker.log_metrics({"train/loss": 0.5}, step=1)
        tracker.finalize("success")
        assert serving.seen
    wandb.teardown()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    for value in canaries.values():
        assert [path.name for path in files if value.encode() in path.read_bytes()] == []
        assert value not in "".join(capsys.readouterr())

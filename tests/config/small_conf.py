"""A small conf/ that stands for the shipped one, so that mistakes can be written into it."""

from pathlib import Path
from textwrap import dedent

import pytest

from sdscratch.config import check_config, compose
from sdscratch.errors import ConfigError

FILES = {
    "train.yaml": """
        defaults:
          - _self_
          - paths: default
          - objective: v_prediction
          - optimizer: adamw
          - callbacks: default
          - phase: null
          - experiment: null
          - optional local: default
        name: x
        max_steps: 100
        seed: 0
        loss_scale: 1.0
        resume_from: null
        prompt: null
        run_dir: ${paths.runs}/${name}
        validation: {every: 10, prompts: [a, b], anything: {}}
        """,
    "paths/default.yaml": "runs: runs",
    "objective/v_prediction.yaml": """
        _target_: sdscratch.diffusion.DiffusionObjective
        prediction_type: v_prediction
        min_snr_gamma: 5.0
        noise_schedule: {_target_: sdscratch.diffusion.NoiseSchedule, kind: cosine, num_train_timesteps: 1000}
        timestep_distribution: {_target_: sdscratch.diffusion.Uniform}
        """,
    "objective/plain.yaml": "{_target_: sdscratch.diffusion.FlowMatching}",
    "optimizer/adamw.yaml": "{_target_: torch.optim.AdamW, _partial_: true, lr: 1.0e-4, betas: [0.9, 0.99]}",
    "optimizer/sgd.yaml": "{_target_: torch.optim.SGD, _partial_: true, lr: 0.1}",
    "callbacks/default.yaml": """
        one: {_target_: sdscratch.diffusion.Uniform}
        two: {_target_: sdscratch.diffusion.LogitNormal, mean: 0.0}
        """,
    "callbacks/none.yaml": "{}",
    "phase/late.yaml": """
        # @package _global_
        defaults: [{override /optimizer: sgd}]
        max_steps: 50
        seed: 5
        """,
    "experiment/seven.yaml": "# @package _global_\nseed: 7",
}


@pytest.fixture
def conf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small conf/ that stands for the shipped one."""
    for name, text in FILES.items():
        add(tmp_path, name, text)
    monkeypatch.setattr("sdscratch.config.composition.config_dir", lambda: tmp_path)
    return tmp_path


def add(conf: Path, name: str, text: str) -> None:
    (conf / name).parent.mkdir(parents=True, exist_ok=True)
    (conf / name).write_text(dedent(text))


def complaint(*overrides: str) -> str:
    """What the user reads after a wrong `sdscratch train`."""
    with pytest.raises(ConfigError) as caught:
        check_config(compose("train", overrides))
    text = str(caught.value)
    assert len(text.splitlines()) <= 40 and "Traceback" not in text and "hydra.cc" not in text
    return text

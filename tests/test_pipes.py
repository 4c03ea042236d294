"""A pipe that somebody has put where a file is looked for: passed over or refused, never waited for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_shards import image_samples

from sdscratch.config import load_config
from sdscratch.data.index import ShardIndex
from sdscratch.data.shards import write_shards
from sdscratch.errors import ConfigError, DataError, RunFolderError
from sdscratch.evaluation.features import features_of
from sdscratch.files import read_bytes
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.run_folder import RunFolder
from sdscratch.training.curriculum import CurriculumFolder

pytestmark = pytest.mark.timeout(20, func_only=True)


def planted(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def test_an_index_of_shards_is_made_again(tmp_path):
    write_shards(tmp_path, image_samples(3), {})
    ShardIndex.open(tmp_path)
    (index,) = tmp_path.glob("index-*.npy")
    planted(index)
    assert len(ShardIndex.open(tmp_path)) == 3 and index.is_file()


def test_features_are_looked_at_again(tmp_path):
    class Pictures:
        fingerprint = "pictures"

        def __len__(self) -> int:
            return 2

        def picture(self, i: int) -> int:
            return i

    class Network:
        kind, path, fingerprint = "kind", "path", "network"

        def features(self, pictures: list[int]) -> torch.Tensor:
            return torch.tensor(pictures, dtype=torch.float32)[:, None]

    found = features_of(Pictures(), Network(), tmp_path, batch_size=2)
    planted(next(tmp_path.glob("*.npy")))
    assert torch.equal(features_of(Pictures(), Network(), tmp_path, batch_size=2), found)


@pytest.mark.parametrize(
    "name",
    [
        "sdscratch.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ],
)
def test_a_model_folder_is_refused(name, tiny_run, tmp_path):
    folder = Path(shutil.copytree(tiny_run.model_folder, tmp_path / "model"))
    planted(folder / name)
    with pytest.raises(DataError, match="cannot be read: .*it is no file|holds no VAE"):
        load_model_folder(folder)


def test_the_files_of_a_run(tiny_run, tmp_path):
    run = RunFolder(tmp_path / "run")
    shutil.copytree(tiny_run.path, run.path)
    *_, older, newest = run.checkpoints()
    planted(newest.path)
    with pytest.raises(RunFolderError, match="cannot be read .it is no file"):
        run.newest_intact_checkpoint()
    planted(newest.sidecar)
    assert run.checkpoints()[-1] == older
    with pytest.raises(RunFolderError, match="cannot be read .it is no file"):
        run.newest_intact_checkpoint()
    planted(run.metrics_file)
    with pytest.raises(RunFolderError, match="it is no file"):
        run.read_metrics()
    with pytest.raises(RunFolderError, match="it is no file"):
        run.append_metrics({"step": 1})
    with pytest.raises(ConfigError, match="it is no file"):
        load_config(planted(run.config_file))


def test_the_manifest_of_a_curriculum(tmp_path):
    planted(tmp_path / "manifest.json")
    with pytest.raises(RunFolderError, match="it is no file"):
        CurriculumFolder(tmp_path).entries()


def test_neither_is_a_device_a_file():
    with pytest.raises(OSError, match="it is no file"):
        read_bytes(Path("/dev/zero"))

"""A pipe that somebody has put where a file is looked for: passed over or refused, never waited for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from tiny_shards import image_samples

from sdscratch.commands.quickstart import Stages
from sdscratch.config import load_config
from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import Manifest
from sdscratch.data.shards import DROPPED, Dropped, ShardFolder, write_shards
from sdscratch.errors import CannotWriteError, ConfigError, DataError, RunFolderError
from sdscratch.evaluation.features import features_of
from sdscratch.files import LOCK, read_bytes
from sdscratch.interop.diffusers_folder import load_model_folder
from sdscratch.prepare.download.again import reopen
from sdscratch.run_folder import RunFolder
from sdscratch.training.curriculum import CurriculumFolder
from sdscratch.training.tracking import WandbTracker

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
    ("name", "said"),
    [
        ("sdscratch.json", "it is no file: .*sdscratch.json"),
        ("scheduler/scheduler_config.json", "it is no file: .*scheduler_config.json"),
        ("unet/config.json", "it is no file: .*unet/config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "it is no file: .*unet/diffusion_pytorch_model.safetensors"),
        ("vae/config.json", "holds no VAE that can be read .*no file named config.json"),
        ("vae/diffusion_pytorch_model.safetensors", "holds no VAE .*no file named diffusion_pytorch_model.safetensors"),
        ("text_encoder/model.safetensors", "holds no CLIP text encoder .*no file named model.safetensors"),
    ],
)
def test_a_model_folder_is_refused_by_the_file(name, said, tiny_run, tmp_path):
    folder = Path(shutil.copytree(tiny_run.model_folder, tmp_path / "model"))
    assert (folder / name).is_file()
    planted(folder / name)
    with pytest.raises(DataError, match=said):
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


def test_a_lock_a_list_of_bad_steps_and_an_id_of_wandb(tmp_path):
    run = RunFolder(tmp_path)
    run.set_state(status="running")
    planted(tmp_path / LOCK)
    assert run.status() == "stopped"
    with pytest.raises(CannotWriteError, match="cannot write into"):
        run.lock()
    planted(tmp_path / "bad_steps.jsonl")
    with pytest.raises(OSError, match="it is no file"):
        run.append_bad_step({"step": 1})
    (tmp_path / "wandb").mkdir()
    planted(tmp_path / "wandb" / "id")
    new = WandbTracker(str(tmp_path), "a").version
    assert len(new) == 8 and WandbTracker(str(tmp_path), "a").version == new


def test_the_times_of_a_quickstart_begin_anew(tmp_path):
    stages = Stages(planted(tmp_path / "report.json"))
    with stages.timed("clip", ""):
        pass
    assert Stages(tmp_path / "report.json").report["finished"] == ["clip"]


def test_what_fell_of_a_download(tmp_path):
    write_shards(tmp_path, [*image_samples(2), Dropped("gone", "timeout")], {})
    planted(tmp_path / DROPPED)
    with pytest.raises(DataError, match="it is no file"):
        reopen(ShardFolder(tmp_path, {}), Manifest.read(tmp_path), {"00000.tar": 3})


def test_the_manifest_of_a_curriculum(tmp_path):
    planted(tmp_path / "manifest.json")
    with pytest.raises(RunFolderError, match="it is no file"):
        CurriculumFolder(tmp_path).entries()


def test_neither_is_a_device_a_file():
    with pytest.raises(OSError, match="it is no file"):
        read_bytes(Path("/dev/zero"))

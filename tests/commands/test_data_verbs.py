"""`sdscratch data shapes` and `sdscratch data encode`, as they are called."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdscratch.cli import main
from sdscratch.data.index import ShardIndex
from sdscratch.data.shards import DROPPED, write_shards
from sdscratch.interop.diffusers_folder import save_model_folder
from sdscratch.models import new_vae


@pytest.fixture(scope="module")
def vae_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder as an autoencoder stage leaves it: a model with a VAE alone."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("vae_run")
    sizes = {"block_out_channels": (4, 4), "layers_per_block": 1, "latent_channels": 4, "norm_num_groups": 2}
    save_model_folder(run / "model", vae=new_vae(**sizes, sample_size=8, mid_block_add_attention=False), about={})
    return run


def contents(folder: Path) -> dict[str, bytes]:
    """Shards and manifests; the index of byte offsets appears when somebody reads."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.suffix in (".tar", ".json")}


def refusal(capsys: pytest.CaptureFixture[str], *words: str, exit_code: int = 2) -> str:
    assert main(words) == exit_code
    said = capsys.readouterr()
    assert said.err.startswith("sdscratch: ") and len(said.err.splitlines()) == 1
    return said.err


pytestmark = pytest.mark.xdist_group("data_verbs")  # what is drawn and encoded once serves all


# data shapes


@pytest.mark.parametrize("things", ["notes.txt", "train/cat.jpg"])
def test_no_scenes_are_drawn_among_other_things(tmp_path, capsys, things):
    (tmp_path / "mine" / things).parent.mkdir(parents=True)
    (tmp_path / "mine" / things).touch()
    said = refusal(capsys, "data", "shapes", f"out={tmp_path / 'mine'}", "count=3", "val_count=1")
    assert f"{tmp_path / 'mine'} holds other things already ({Path(things).parts[0]})" in said
    said = refusal(capsys, "train", "experiment=tiny", f"paths.runs={tmp_path}", f"dataset.path={tmp_path / 'mine'}")
    assert "holds other things already" in said
    assert "dataset.path is empty" in refusal(
        capsys, "train", "experiment=tiny", f"paths.runs={tmp_path}", "dataset.path="
    )
    assert [path.name for path in (tmp_path / "mine").rglob("*.*")] == [Path(things).name]


def test_shapes_are_drawn_once_and_are_the_same_bytes_wherever(tmp_path, capsys):
    words = ["data", "shapes", "count=30", "val_count=10", "resolution=16"]
    assert main([*words, f"out={tmp_path / 'a'}"]) == 0
    assert "30 training and 10 validation scenes of 16 px" in capsys.readouterr().out
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.tar")}
    assert main([*words, f"out={tmp_path / 'a'}"]) == 0 and main([*words, f"out={tmp_path / 'b'}"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "a").rglob("*.tar")} == before
    assert contents(tmp_path / "a") == contents(tmp_path / "b") and len(contents(tmp_path / "a")) == 4


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("count=0", "count is 0"),
        ("val_count=-1", "val_count is -1"),
        ("resolution=0", "resolution is 0: expected a whole number of at least 8"),
    ],
)
def test_shapes_that_cannot_be_drawn_are_refused(tmp_path, capsys, override, said):
    assert said in refusal(capsys, "data", "shapes", f"out={tmp_path / 'out'}", override)
    assert not (tmp_path / "out").exists()


def test_an_empty_out_is_not_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "out is empty" in refusal(capsys, "data", "shapes", "out=", "count=3", "val_count=1")
    assert not list(tmp_path.iterdir())


def test_drawing_shapes_loads_no_torch():
    code = "import sys, sdscratch.commands.data_shapes; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_shapes_never_take_the_place_of_others(tmp_path, capsys):
    main(["data", "shapes", "count=3", "val_count=1", f"out={tmp_path}"])
    capsys.readouterr()
    assert "differ in count" in refusal(capsys, "data", "shapes", "count=4", "val_count=1", f"out={tmp_path}")


# data encode


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, of 1000 and 600 pictures of 8 pixels."""
    folder = tmp_path_factory.mktemp("scenes")
    assert main(["data", "shapes", f"out={folder}", "count=1600", "val_count=1", "resolution=8"]) == 0
    return folder / "train"


def encode(scenes: Path, out: Path, vae_run: Path) -> list[str]:
    return ["data", "encode", f"path={scenes}", f"out={out}", f"model={vae_run}", "resolution=8"]


@pytest.fixture(scope="module")
def encoded(vae_run: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All scenes, encoded in one go."""
    out = tmp_path_factory.mktemp("encoded") / "out"
    assert main(encode(scenes, out, vae_run)) == 0
    return out


def test_encoding_twice_reuses_what_is_there(vae_run, scenes, encoded, capsys):
    before, times = contents(encoded), {path: path.stat().st_mtime_ns for path in encoded.iterdir()}
    assert main(encode(scenes, encoded, vae_run)) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"{encoded}: latents of 1600 pictures of 8 px, VAE ") and said.err == ""
    assert contents(encoded) == before and {path: path.stat().st_mtime_ns for path in encoded.iterdir()} == times


def test_bad_pictures_are_named_and_may_be_left_out(vae_run, scenes, tmp_path, capsys):
    good = ShardIndex.open(scenes).read(0)
    write_shards(tmp_path / "images", [("one", {"png": b"no picture", "txt": b"a"}), ("two", good)], {})
    words = encode(tmp_path / "images", tmp_path / "out", vae_run)
    assert "00000.tar: one is a bad sample: the image is none of JPEG, PNG, WEBP" in refusal(capsys, *words)
    assert main([*words, "on_bad=quarantine"]) == 0
    said = capsys.readouterr().out
    assert "latents of 1 pictures" in said and "1 fell (not decodable: 1), each named in" in said
    assert '"key": "one"' in (tmp_path / "out" / DROPPED).read_text()


def test_the_closing_line_says_how_good_the_latents_are(vae_run, scenes, tmp_path, capsys):
    assert main([*encode(scenes, tmp_path / "out", vae_run), "dtype=bfloat16", "flips=true"]) == 0
    assert re.search(r", decoded again -?\d+\.\d dB, bfloat16 within 0\.\d\d% of float32\n$", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("resolution=9", "resolution=9 is not divisible by the VAE's factor 2. Set it to 8 or 10."),
        ("on_bad=skip", "on_bad='skip' is unknown"),
        ("dtype=fp16", "dtype='fp16' is unknown"),
        ("engine=slurm", "engine='slurm' is unknown"),
        ("device=gpu", "device='gpu' is unknown; expected cuda, cuda:1 and so on, or cpu"),
        ("device=cuda:99", "device=cuda:99: torch finds"),
        ("workers=-1", "workers is -1"),
        ("text=nowhere", "there is no CLIP text encoder nowhere"),
        ("batch_size=0", "batch_size is 0"),
        ("path=nowhere", "no shards in nowhere"),
        ("model=nowhere", "there is no VAE nowhere"),
        ("flip=true", "did you mean 'flips'"),
    ],
)
def test_what_cannot_be_encoded_is_refused(vae_run, scenes, tmp_path, capsys, override, said):
    assert said in refusal(capsys, *encode(scenes, tmp_path / "out", vae_run), override)
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_gives_exit_code_4(vae_run, scenes, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "file" in refusal(capsys, *encode(scenes, tmp_path / "file" / "out", vae_run), exit_code=4)
    assert "file" in refusal(capsys, "data", "shapes", f"out={tmp_path / 'file'}", exit_code=4)

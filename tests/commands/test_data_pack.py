"""`sdscratch data pack` and `sdscratch data select`, as they are called."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from sdscratch.cli import main
from sdscratch.data.index import ShardIndex
from sdscratch.data.manifest import MANIFEST, Manifest
from sdscratch.data.shards import DROPPED


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """No test writes into the user's cache."""
    monkeypatch.setenv("SDSCRATCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six pictures, of which one has no caption, with scores."""
    folder = tmp_path / "photos (mine, 2024)"
    folder.mkdir()
    for n in range(6):
        Image.new("RGB", (40, 30), (n, 0, 0)).save(folder / f"{n}.png")
        if n:
            (folder / f"{n}.json").write_text(json.dumps({"caption": f"picture {n}", "score": n}))
    return folder


def keys(folder: Path) -> list[str]:
    index = ShardIndex.open(folder)
    return [index.key(n) for n in range(len(index))]


def refusal(capsys: pytest.CaptureFixture[str], *words: str, exit_code: int = 2) -> str:
    assert main(words) == exit_code
    said = capsys.readouterr()
    assert said.err.startswith("sdscratch: ") and len(said.err.splitlines()) == 1, said.err
    return said.err


def test_a_folder_becomes_shards_and_a_part_of_them_is_selected(photos, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["data", "pack", f"path={photos}", f"out={out}", "shard_size=2", "pictures.size=16", "licence=CC0-1.0"]
    assert main(words) == 0
    assert (
        capsys.readouterr().out
        == f"{out}: 5 pictures in 3 shards; 1 fell (no caption: 1), each named in {out / DROPPED}\n"
    )
    assert Manifest.read(out).licences == {"CC0-1.0": 5} and (out / DROPPED).exists()
    part = ["data", "select", f"path={out}", f"out={tmp_path / 'part'}", "where=score > 2 and score < 5"]
    assert main(words) == 0 and main(part) == 0
    assert capsys.readouterr().out.endswith(f"part: 2 of 5 samples of {out}, where score > 2 and score < 5\n")
    assert keys(tmp_path / "part") == ["3", "4"]


def test_tars_are_adopted_where_they_are(photos, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["data", "pack", f"path={photos}", f"out={out}"]) == 0
    for name in (MANIFEST, DROPPED):
        (out / name).unlink()
    capsys.readouterr()
    assert "leave out= empty" in refusal(capsys, "data", "pack", "kind=webdataset", f"path={out}", f"out={tmp_path}")
    assert main(["data", "pack", "kind=webdataset", f"path={out}"]) == 0
    assert capsys.readouterr().out == f"{out}: 5 pictures in 1 shards\n" and keys(out) == list("12345")


def test_bad_samples_of_adopted_tars_are_told_of(photos, tmp_path, capsys):

    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name in ("x.png", "x.txt"):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(b"x"))
    words = ["data", "pack", "kind=webdataset", f"path={tmp_path}"]
    assert "on_bad=quarantine" in refusal(capsys, *words)
    assert main([*words, "on_bad=quarantine"]) == 0
    said = capsys.readouterr()
    assert said.err == f"warning: 1 bad samples stay in the tars; they are named in {tmp_path / 'bad.jsonl'}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kind=foldr"], "foldr"),
        (["crop=person"], "crop"),  # of another kind
        (["kind=coco", "crop=people"], "takes 'person' | 'none', found the string 'people'"),
        (["kind=coco", "pictures.sise=512"], "did you mean 'pictures.size'"),
        (["shard_size=0"], "shard_size is 0"),
        (["shard_size=99999999999999999999"], "at least 1 and at most 1000000"),
        (
            ["pictures.crop=left"],
            "takes 'none' | 'centre' | 'smart', found the string 'left'",
        ),
        (["on_bad=skip"], "on_bad='skip' is unknown"),
        (["engine=slurm"], "engine='slurm' is unknown"),
        (["workers=-1"], "workers is -1"),
        (["limit=0"], "limit is 0"),
        (["out="], "out is empty"),
        (["path=nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_packed_is_refused(words, said, photos, tmp_path, capsys):
    assert main(["data", "pack", f"path={photos}", f"out={tmp_path / 'out'}", *words]) == 2
    message = capsys.readouterr().err
    assert said in message and "Traceback" not in message
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_place_that_cannot_be_written_gives_exit_code_4(photos, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert "file" in refusal(capsys, "data", "pack", f"path={photos}", f"out={tmp_path / 'file'}", exit_code=4)


@pytest.mark.parametrize(
    "kind", ["coco", "diffusiondb", "folder", "imagefolder", "journeydb", "vggface2", "webdataset"]
)
def test_every_kind_says_in_its_help_what_it_takes(kind, capsys):
    assert main(["data", "pack", f"kind={kind}", "--help"]) == 0
    assert f"[{kind}]" in capsys.readouterr().out


@pytest.mark.parametrize("module", ["sdscratch.commands.data_pack", "sdscratch.commands.data_select"])
def test_neither_loads_torch(module):
    code = f"import sys, {module}, sdscratch.prepare.pack as c; [getattr(c, n) for n in c.__all__]"
    code += "; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_packing_and_verifying_start_within_two_seconds_of_cpu_time(photos, tmp_path):
    """On a machine that does other things too, the clock on the wall says little."""
    code = "import sys, time; from sdscratch.cli import main; rc = main(sys.argv[1:]); print(time.process_time(), rc)"
    out = f"{tmp_path / 'out'}"
    for words in (["pack", f"path={photos}", f"out={out}"], ["verify", f"path={out}"]):
        done = subprocess.run([sys.executable, "-c", code, "data", *words], capture_output=True, text=True)
        seconds, exit_code = done.stdout.splitlines()[-1].split()
        assert exit_code == "0" and float(seconds) < 2, (words, done)

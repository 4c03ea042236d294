"""Pictures for prompts are drawn once, and the same whoever draws them when."""

import os
import subprocess
import sys

import pytest

from sdscratch.errors import ConfigError, DataError
from sdscratch.evaluation.drawn_pictures import DrawnPictures
from sdscratch.evaluation.prompt_suites import Prompt
from sdscratch.pipeline import TextToImage

PROMPTS = [Prompt(f"a red circle {i}") for i in range(5)]
PROTOCOL = {
    "negative_prompt": "",
    "num_inference_steps": 2,
    "guidance_scale": 2.0,
    "guidance_rescale": 0.0,
    "sampler": "euler",
    "eta": 0.0,
    "size": 32,
    "weights": "ema",
    "seed": 3,
    "batch_size": 2,
}


@pytest.fixture(scope="module")
def pipe(tiny_run):
    return TextToImage.from_pretrained(tiny_run.path, "cpu")


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.png")}


def test_pictures_drawn_at_once_in_parts_and_after_a_loss_are_the_same_bits(pipe, tmp_path):
    once = DrawnPictures(tmp_path / "once", PROMPTS, PROTOCOL)
    once.draw(pipe)
    wanted = content(once.folder)
    assert sorted(wanted) == [f"{i:05d}.png" for i in range(5)]

    parts = DrawnPictures(tmp_path / "parts", PROMPTS, PROTOCOL)
    parts.draw(pipe, part=(1, 2))
    assert sorted(content(parts.folder)) == ["00002.png", "00003.png"]
    parts.draw(pipe, part=(0, 2))
    assert content(parts.folder) == wanted

    (once.folder / "00003.png").unlink()
    again = DrawnPictures(once.folder, PROMPTS, PROTOCOL)
    again.draw(pipe)
    assert content(once.folder) == wanted
    assert again.picture(4).size == (32, 32)


def test_what_is_there_is_not_drawn_again(pipe, tmp_path):
    drawn = DrawnPictures(tmp_path, PROMPTS, PROTOCOL)
    drawn.draw(pipe)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")}
    drawn.draw(pipe)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.png")} == before


def test_a_folder_of_another_protocol_is_refused_with_what_differs(tmp_path):
    DrawnPictures(tmp_path, PROMPTS, PROTOCOL)
    with pytest.raises(ConfigError, match=r"drawn otherwise \(seed: 3, not 4\)"):
        DrawnPictures(tmp_path, PROMPTS, {**PROTOCOL, "seed": 4})
    with pytest.raises(ConfigError, match="batch_size: 2, not 3"):  # each of whose pictures would round otherwise
        DrawnPictures(tmp_path, PROMPTS, {**PROTOCOL, "batch_size": 3})


BEGINNING = """
import sys, time
from pathlib import Path
from sdscratch.files import FolderLock, write_json
folder = Path(sys.argv[1])
with FolderLock(folder).held():
    print("begun", flush=True)
    time.sleep(0.5)
    write_json(folder / "protocol.json", {"seed": 5})
"""


def test_of_two_that_begin_at_once_with_other_protocols_one_is_refused(tmp_path):
    with subprocess.Popen([sys.executable, "-c", BEGINNING, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"begun\n"
        with pytest.raises(ConfigError, match="seed: 5, not 3"):
            DrawnPictures(tmp_path, PROMPTS, PROTOCOL)
    assert os.listdir(tmp_path) == ["protocol.json"]


def test_a_part_leaves_alone_what_others_have_half_written_and_the_whole_tidies_up(pipe, tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    half = tmp_path / f".00001.png.{dead.pid}.tmp"  # it may be one of another machine
    half.touch()
    drawn = DrawnPictures(tmp_path, PROMPTS, PROTOCOL)
    drawn.draw(pipe, part=(0, 2))
    assert half.exists()
    drawn.draw(pipe)
    assert not half.exists()


def test_a_damaged_picture_is_named(tmp_path):
    drawn = DrawnPictures(tmp_path, PROMPTS, PROTOCOL)
    (tmp_path / "00001.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"00001.png cannot be read .* Delete it"):
        drawn.picture(1)

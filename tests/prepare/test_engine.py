"""Functions over many shards: what is done, by whom, and what becomes of workers when something goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from sdscratch.errors import ConfigError, DataError, LostRankError
from sdscratch.prepare.engine import map_shards, worker_number
from sdscratch.prepare.filter.filter import Filter
from sdscratch.prepare.filter.rules import Rules
from sdscratch.prepare.pack import Folder
from sdscratch.prepare.pack.packer import Packer
from sdscratch.prepare.pictures import Form


def square(number: int) -> tuple[int, int]:
    if number < 0:
        raise DataError(f"{number} is below 0")
    return number * number, os.getpid()


def number_of_worker(folder: str) -> int | None:
    number = worker_number()
    Path(folder, str(number)).touch()
    deadline = time.monotonic() + 60
    while number is not None and len(os.listdir(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)  # so that no worker does it all
    return number


def vanish(task: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def linger(folder: str) -> None:
    """Leave a file that says who works, then work for a long time."""
    Path(folder, str(os.getpid())).touch()
    time.sleep(60)


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (OSError, ValueError):
        return False


@pytest.mark.parametrize("workers", [0, 2])
def test_every_task_is_done_once_and_in_as_many_processes_as_asked_for(workers):
    results = sorted(map_shards(square, range(8), workers=workers))
    assert [result for result, _ in results] == [number * number for number in range(8)]
    processes = {process for _, process in results}
    assert processes == {os.getpid()} if workers == 0 else os.getpid() not in processes and len(processes) <= workers


def test_workers_are_numbered_and_the_process_itself_is_none(tmp_path):
    for workers, expected in ((0, {None}), (2, {0, 1})):
        (tmp_path / str(workers)).mkdir()
        tasks = 4 * [str(tmp_path / str(workers))]
        assert set(map_shards(number_of_worker, tasks, workers=workers)) == expected


def test_no_tasks_are_no_work():
    assert list(map_shards(square, [], workers=2)) == list(map_shards(square, [])) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_the_error_of_a_task_is_raised_as_it_was(workers):
    with pytest.raises(DataError, match="-1 is below 0"):
        list(map_shards(square, [1, -1, 2], workers=workers))


def test_an_error_ends_what_others_are_doing(tmp_path):
    start = time.monotonic()
    with pytest.raises(DataError):
        for _ in map_shards(linger_or_fail, [str(tmp_path), "fail"], workers=2):
            pass
    assert time.monotonic() - start < 30
    assert not any(is_alive(int(path.name)) for path in tmp_path.iterdir())


def linger_or_fail(task: str) -> None:
    if task == "fail":
        raise DataError("failed")
    linger(task)


def test_a_worker_that_is_killed_is_reported_with_what_it_was_doing():
    with pytest.raises(LostRankError, match="a worker ended without a word while 00003.tar were worked on"):
        list(map_shards(vanish, ["00003.tar"], workers=1))


PROGRAM = """
import sys
from test_engine import linger
from sdscratch.prepare.engine import map_shards
if __name__ == "__main__":
    try:
        list(map_shards(linger, [sys.argv[1]] * 2, workers=2))
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.fixture
def job(tmp_path):
    """Two workers at work for a minute, in a process group of their own: (process, the workers' numbers)."""
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "workers").mkdir()
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "program.py", "workers"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while len(workers := list((tmp_path / "workers").iterdir())) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    yield process, [int(path.name) for path in workers]
    process.kill()


def all_end(processes: list[int], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while any(map(is_alive, processes)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(map(is_alive, processes))


def busy() -> float:
    """How many times longer than alone something takes on this machine just now."""
    start, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < 0.1:
        pass
    return (time.monotonic() - start) / 0.1


def test_ctrl_c_ends_all_within_two_seconds_and_without_a_traceback(job):
    process, workers = job
    longer, start = busy(), time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: to everyone
    said = process.communicate(timeout=60)
    assert time.monotonic() - start < 2 * max(longer, busy())
    assert said == ("stopped\n", "") and process.returncode == 0
    assert all_end(workers, 0)


def test_workers_end_when_their_parent_is_killed(job):
    process, workers = job
    process.kill()
    assert all_end(workers, 30)  # half of what they would take otherwise


@pytest.fixture(scope="module")
def ray():
    """A cluster of this machine alone."""
    ray = pytest.importorskip("ray", reason="pip install 'sdscratch[cluster]'")
    paths = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}  # where its processes find us
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env={"env_vars": paths})
    yield ray
    ray.shutdown()


def test_a_ray_cluster_does_the_same(ray):
    results = sorted(map_shards(square, range(8), engine="ray"))
    assert [result for result, _ in results] == [number * number for number in range(8)]
    assert os.getpid() not in {process for _, process in results}


def test_the_error_of_a_task_on_a_ray_cluster_is_raised_as_it_was(ray):
    with pytest.raises(DataError, match="^-1 is below 0$"):
        list(map_shards(square, [1, -1, 2], engine="ray"))


def test_filter_and_pack_write_the_same_bytes_on_a_ray_cluster(ray, tmp_path):
    photos = tmp_path / "photos"
    for folder in (photos, tmp_path / "rows"):
        folder.mkdir()
    for file in range(2):
        lines = [f"http://host/{file}/{n}.jpg,a caption of {file} and {n}" for n in range(5)]
        (tmp_path / "rows" / f"{file}.csv").write_text("\n".join(["url,text", *lines]))
    for n in range(5):
        Image.new("RGB", (20, 16), (n, 0, 0)).save(photos / f"{n}.png")
        (photos / f"{n}.txt").write_text(f"picture {n}")
    outs = {engine: (tmp_path / f"rows_{engine}", tmp_path / f"shards_{engine}") for engine in ("local", "ray")}
    for engine, (rows, shards) in outs.items():
        Filter(Rules(min_words=2), engine=engine).write(tmp_path / "rows", rows)  # type: ignore[arg-type]
        Packer(Form(size=8), shard_size=2, engine=engine).pack(Folder(photos, source="test"), shards)  # type: ignore[arg-type]
    for one, other in zip(*outs.values(), strict=True):
        assert {path.name: path.read_bytes() for path in one.iterdir()} == {
            path.name: path.read_bytes() for path in other.iterdir()
        }


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_said():
    with pytest.raises(ConfigError, match="engine=ray needs Ray"):
        list(map_shards(square, [1], engine="ray"))


def test_an_unknown_engine_or_number_of_workers_is_refused():
    with pytest.raises(ConfigError, match="engine='slurm' is unknown; expected local or ray"):
        list(map_shards(square, [1], engine="slurm"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="workers is -1"):
        list(map_shards(square, [1], workers=-1))

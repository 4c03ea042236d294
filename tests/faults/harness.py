"""Real command lines in real processes, about a second each, that can be killed at any moment; and what their runs left.

server.attempt(["train", "experiment=tiny", ...], kill_after=0.7)      # one process and its workers, kill -9
server.start(words)                                                    # several at once: running.kill(), running.wait()
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch

import sdscratch
from sdscratch.run_folder import RunFolder

LONG = os.environ.get("SDS_FAULTS") == "long"
"""Whether tests take the long form, as `make faults` asks for; otherwise they stay short."""

PATIENCE = 300.0
"""Seconds for what takes a few on a machine that does nothing else: others may take most of it."""

CLOCK = ("samples_per_second", "data_wait", "memory_gb", "mfu")
"""Columns of metrics.csv that no two runs share."""

Whom = Literal["group", "parent"]


@dataclass(frozen=True)
class Attempt:
    """How one command ended. rc: its exit code, or minus the number of the signal that killed it, as in subprocess."""

    rc: int
    seconds: float
    output: str

    @property
    def killed(self) -> bool:
        return self.rc < 0


class Running:
    """A command under way; `pid` leads its process group."""

    def __init__(self, connection: socket.socket, output: Path) -> None:
        self._connection, self._lines, self._output = connection, connection.makefile(), output
        self._start = time.perf_counter()
        self.pid = int(self._lines.readline())

    def kill(self, number: int = signal.SIGKILL, whom: Whom = "group") -> None:
        """Send a signal to the whole group, or to its leader alone. One that has ended already does not mind."""
        with suppress(ProcessLookupError):
            (os.killpg if whom == "group" else os.kill)(self.pid, number)

    def ends_within(self, seconds: float) -> bool:
        """Wait at most so long for the end."""
        self._connection.settimeout(max(seconds, 1e-3))
        try:
            return bool(self._connection.recv(1, socket.MSG_PEEK))
        except TimeoutError:
            return False
        finally:
            self._connection.settimeout(None)

    def wait(self, timeout: float = PATIENCE) -> Attempt:
        """The end. What takes longer than `timeout` is killed, and an error with all that it said."""
        in_time = self.ends_within(timeout)
        if not in_time:
            self.kill()
        rc = int(self._lines.readline())
        attempt = Attempt(rc, time.perf_counter() - self._start, self.output())
        self._connection.close()
        if not in_time:
            raise TimeoutError(f"still running after {timeout} s:\n{attempt.output}")
        return attempt

    def output(self) -> str:
        """What it has said so far, on stdout and stderr together."""
        return self._output.read_text(errors="replace")

    def group(self) -> list[int]:
        """The living processes of its group: itself and its loader workers."""
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group_of(pid) == self.pid]


class ForkServer:
    """The warm process of fork_server.py, in `folder`; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.attempts = folder, 0

    def __enter__(self) -> ForkServer:
        words = [sys.executable, str(Path(__file__).with_name("fork_server.py")), str(self.folder / "socket")]
        env = {**os.environ, "PYTHONPATH": str(Path(sdscratch.__file__).parents[1])}  # the copy that is tested
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the fork server did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def start(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        limits: Mapping[str, int] | None = None,
        uid: int | None = None,
    ) -> Running:
        """Begin `sdscratch WORDS`. env: added to the environment. limits: as {"RLIMIT_FSIZE": bytes}. uid: the user to be."""
        self.attempts += 1
        output = self.folder / f"{self.attempts:04d}.log"
        output.touch(mode=0o666)
        request = {
            "words": list(words),
            "env": dict(env or {}),
            "output": str(output),
            "limits": dict(limits or {}),
            "uid": uid,
        }
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(str(self.folder / "socket"))
        connection.sendall(f"{json.dumps(request)}\n".encode())
        return Running(connection, output)

    def attempt(
        self,
        words: Sequence[str],
        *,
        kill_after: float | None = None,
        number: int = signal.SIGKILL,
        whom: Whom = "group",
        timeout: float = PATIENCE,
        **how: Any,
    ) -> Attempt:
        """Run `sdscratch WORDS` to its end, or until signal `number` is sent after `kill_after` seconds. See `start`."""
        running = self.start(words, **how)
        if kill_after is not None and not running.ends_within(kill_after):
            running.kill(number, whom)
        return running.wait(timeout)


def rows(run: RunFolder) -> list[dict[str, float]]:
    """metrics.csv to the last bit (numbers are written by repr), without the clock's columns."""
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.read_metrics()]


def differing_rows(run: RunFolder, other: RunFolder) -> int:
    """How many rows of the two records are not equal, missing ones included."""
    one, two = ({row["step"]: row for row in rows(folder)} for folder in (run, other))
    assert len(one) == len(rows(run)) and len(two) == len(rows(other)), "a step has two rows"
    return sum(one.get(step) != two.get(step) for step in one.keys() | two.keys())


def state_hashes(run: RunFolder) -> dict[str, str]:
    """Hashes of the raw weights, the average, the optimizer's and the callbacks' state of the newest checkpoint."""
    checkpoint = run.newest_intact_checkpoint()
    assert checkpoint is not None
    content = checkpoint.load()
    parts = ("global_step", "samples_seen", "state_dict", "ema", "optimizer_states", "callbacks")
    return {part: _hash(content[part]) for part in parts}


def assert_same_run(run: RunFolder, reference: RunFolder) -> None:
    """Every row, the weights, their average, the optimizer, and the checkpoints that are kept; nothing half done is left."""
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(reference)]
    assert differing_rows(run, reference) == 0
    assert state_hashes(run) == state_hashes(reference)
    kept = [(c.step, c.val_loss) for c in run.checkpoints()]
    assert kept == [(c.step, c.val_loss) for c in reference.checkpoints()]
    assert len([path for path in run.checkpoint_folder.iterdir() if path.is_file()]) == 2 * len(kept)


def _hash(value: Any) -> str:
    digest = sha256()

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for name in sorted(value, key=str):
                digest.update(f"{name!r}:".encode())
                add(value[name])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        elif isinstance(value, torch.Tensor):
            digest.update(f"{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(f"{value!r};".encode())

    add(value)
    return digest.hexdigest()[:16]


def _group_of(pid: int) -> int | None:
    """The process group of a living process."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else int(fields[2])


def wait_until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Look every 20 ms; an error when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)

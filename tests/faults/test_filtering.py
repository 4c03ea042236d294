"""Filtering metadata: killed at any time, and as much of it as collections have."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from laion_rows import contents, synthetic, write

from sdscratch.prepare.filter.filter import PARTS, Filter
from sdscratch.prepare.filter.rules import Rules

LONG = os.environ.get("SDS_FAULTS") == "long"


def test_a_filtering_killed_at_random_times_ends_in_the_same_bytes(tmp_path):
    for n in range(3):
        write(tmp_path / "metadata" / f"part-{n}.parquet", synthetic(n * 20_000, (n + 1) * 20_000))
    metadata, filtered = tmp_path / "metadata", tmp_path / "undisturbed"
    Filter(Rules(min_aesthetic=5.0, min_side=256, words={"explicit": ["nude"]})).write(metadata, filtered)
    rules = ["rules.min_aesthetic=5.0", "rules.min_side=256", "rules.words={explicit:[nude]}"]
    words = ["data", "filter", "rules=none", f"path={metadata}", f"out={tmp_path / 'out'}", *rules]
    command = [sys.executable, "-m", "sdscratch", *words]
    moments, kills = random.Random(0), 0
    while kills < (30 if LONG else 2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not (tmp_path / "out" / PARTS).exists() and process.poll() is None:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 1.0))
        process.send_signal(signal.SIGKILL)
        if process.wait() == 0:  # it was faster: once more
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            continue
        kills += 1
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    assert contents(tmp_path / "out") == contents(filtered)


@pytest.mark.slow
def test_rows_are_filtered_fast_and_in_little_memory(tmp_path):
    """10 million rows, most of which stay until duplicates are looked for; a fortieth of that in the short form."""
    count = 10_000_000 if LONG else 250_000
    for n in range(10):
        write(tmp_path / "in" / f"{n}.parquet", synthetic(n * count // 10, (n + 1) * count // 10))
    code = (
        "import sys; from pathlib import Path; from sdscratch.prepare.filter.filter import Filter; "
        "from sdscratch.prepare.filter.rules import Rules; rules = Rules(min_side=210, words={'explicit': ['naked', 'xxx']}); "
        f"print(Filter(rules).write(Path({str(tmp_path / 'in')!r}), Path({str(tmp_path / 'out')!r})).kept)"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0 and int(done.stdout) > 0.8 * count, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # of both cores, not of the clock
    assert seconds < (240 if LONG else 20)
    if LONG:
        assert after.ru_maxrss < 4 * 2**20

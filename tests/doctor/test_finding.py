"""Checks that hang or fail are findings too."""

from __future__ import annotations

import threading
import time

from sdscratch.doctor.finding import Check, Finding
from sdscratch.errors import DataError


def test_a_check_that_hangs_is_a_failure_in_time_and_keeps_no_program_from_ending():
    start, others = time.perf_counter(), threading.enumerate()
    check = Check("disk", lambda: threading.Event().wait() or [], seconds=0.2)
    (finding,) = check.findings()
    assert (finding.level, finding.about) == ("fail", "disk") and "no answer" in finding.found
    assert time.perf_counter() - start < 30
    assert all(thread.daemon for thread in threading.enumerate() if thread not in others)


def test_what_a_check_raises_is_what_it_found():
    def broken():
        yield Finding("ok", "gpu", "there")
        raise RuntimeError("CUDA driver\nand a traceback")

    def refused():
        raise DataError("a shard is missing")

    assert Check("gpu", broken, 5).findings() == [Finding("fail", "gpu", "RuntimeError: CUDA driver")]
    assert Check("loader", refused, 5).findings() == [Finding("fail", "loader", "a shard is missing")]

"""Fetching from a server that goes away in the middle, from a folder, and from what speaks as the hub does."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from failing_server import REPO, Site, serving
from tiny import files_of_at_most

from sdscratch.errors import CannotWriteError, ConfigError, DataError
from sdscratch.prepare.fetch import web_file
from sdscratch.prepare.fetch.fetch import FETCHED, Fetch, size_in_words
from sdscratch.prepare.fetch.sources import Hub, Mirror, Web

LARGE = random.Random(0).randbytes(3_000_000)
FILES = {"large.zip": LARGE, "rows.parquet": b"rows", "images/part-1.zip": b"one", "images/part-2.zip": b"two"}
ABOUT = {"licence": "CC0 1.0", "status": "open"}


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(web_file, "PAUSE", 0.001)
    with serving(dict(FILES)) as served:
        yield served


def web(site: Site, **sums: str | None) -> Web:
    return Web(
        {f"{site.address}/large.zip": sums.get("large"), f"{site.address}/rows.parquet": sums.get("rows")}, **ABOUT
    )


def fetched(source: Any, out: Path) -> dict[str, Any]:
    return Fetch(source, out, source.files()).write()


def held(out: Path) -> dict[str, bytes]:
    return {
        p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file() and ".cache" not in p.parts
    }


def test_files_come_whole_and_are_recorded_with_size_and_sha256(site, tmp_path):
    record = fetched(web(site), tmp_path / "out")
    assert record["large.zip"] == {"size": len(LARGE), "sha256": sha256(LARGE).hexdigest()}
    found = held(tmp_path / "out")
    assert json.loads(found.pop(FETCHED)) == {**ABOUT, "notes": "", "files": record}
    assert found == {"large.zip": LARGE, "rows.parquet": b"rows"}


def test_a_server_that_goes_away_in_the_middle_is_asked_for_the_rest(site, tmp_path):
    site.cut_after = 400_000
    fetched(web(site), tmp_path / "out")
    ranges = [asked for method, path, asked in site.seen if method == "GET" and path == "/large.zip"]
    assert held(tmp_path / "out")["large.zip"] == LARGE
    assert len(ranges) >= 8 and ranges[0] == "" and all(asked.startswith("bytes=") for asked in ranges[1:])


@pytest.mark.parametrize("lack", ["ranges", "etags"])
def test_a_server_that_cannot_go_on_begins_again_and_nothing_is_mixed(site, tmp_path, lack):
    setattr(site, lack, False)
    site.cut_after = 400_000
    with pytest.raises(DataError, match="large.zip cannot be fetched.*The same command goes on"):
        fetched(web(site), tmp_path / "out")
    site.cut_after = None
    fetched(web(site), tmp_path / "out")
    assert held(tmp_path / "out")["large.zip"] == LARGE


def test_another_version_of_a_file_never_goes_on_where_the_first_one_ended(site, tmp_path, monkeypatch):
    monkeypatch.setattr(web_file, "ATTEMPTS", 1)
    site.cut_after = 400_000
    monkeypatch.setattr(web_file.time, "sleep", lambda _: site.files.update({"large.zip": LARGE[::-1]}))
    with pytest.raises(DataError):
        fetched(web(site), tmp_path / "out")
    site.cut_after, site.files["large.zip"] = None, LARGE[::-1]
    fetched(web(site), tmp_path / "out")
    assert held(tmp_path / "out")["large.zip"] == LARGE[::-1]


def test_answers_that_may_pass_are_waited_for_and_others_are_said_at_once(site, tmp_path):
    site.answers = [503, 429, 500]
    fetched(web(site), tmp_path / "out")
    site.answers = [404]
    with pytest.raises(DataError, match="large.zip cannot be fetched: its server answers 404 Not Found"):
        fetched(web(site), tmp_path / "second")
    site.answers = [503] * 20
    with pytest.raises(DataError, match="answers 503 Service Unavailable. The same command goes on"):
        fetched(web(site), tmp_path / "second")
    assert len(site.answers) == 20 - web_file.ATTEMPTS


def test_a_file_that_is_not_the_published_one_is_refused_and_removed(site, tmp_path):
    with pytest.raises(DataError, match=r"rows.parquet came with sha256 \w+, expected 0000: removed"):
        fetched(web(site, rows="0000"), tmp_path / "out")
    assert set(held(tmp_path / "out")) == {"large.zip", FETCHED}
    fetched(web(site, rows=sha256(b"rows").hexdigest()), tmp_path / "out")
    assert [path for method, path, _ in site.seen if method == "GET"].count("/large.zip") == 1


def test_what_is_here_is_not_fetched_again_unless_it_was_touched(site, tmp_path):
    fetched(web(site), tmp_path / "out")
    site.seen.clear()
    fetched(web(site), tmp_path / "out")
    assert [method for method, *_ in site.seen] == ["HEAD", "HEAD"]
    (tmp_path / "out" / "rows.parquet").write_bytes(b"torn")
    (tmp_path / "out" / "large.zip").write_bytes(LARGE[:100])
    fetched(web(site), tmp_path / "out")
    assert [path for method, path, _ in site.seen if method == "GET"] == ["/large.zip"]


def test_a_full_disk_is_said_and_when_there_is_space_again_it_goes_on(site, tmp_path):
    with files_of_at_most(1_500_000), pytest.raises(CannotWriteError, match="cannot write .*large.zip"):
        fetched(web(site), tmp_path / "out")
    fetched(web(site), tmp_path / "out")
    assert held(tmp_path / "out")["large.zip"] == LARGE


def test_more_than_fits_is_refused_before_anything_comes(site, tmp_path):
    source = web(site)
    huge = [*source.files(), source.files()[0].__class__("huge.zip", 10**18)]
    with pytest.raises(CannotWriteError, match="1000000.0 TB are to come"):
        Fetch(source, tmp_path / "out", huge).write()
    assert not (tmp_path / "out").exists()


def test_what_it_says_before_names_licence_status_sizes_and_checksums(site, tmp_path):
    said = "\n".join(Fetch(source := web(site, rows="abc"), tmp_path, source.files()).said())
    for part in ("licence: CC0 1.0", "status: open", "large.zip  3.0 MB  sha256 not published", "4 B  sha256 abc"):
        assert part in said
    assert "2 files, 2 of them to come: 3.0 MB into" in said


@pytest.mark.parametrize(
    ("size", "words"),
    [(None, "unknown size"), (0, "0 B"), (999, "999 B"), (12_345, "12.3 kB"), (19_300_000_000, "19.3 GB")],
)
def test_sizes_are_said_as_disks_are_sold(size, words):
    assert size_in_words(size) == words


def test_addresses_without_file_names_of_their_own_are_refused():
    for urls in (["https://a.org/"], ["https://a.org/x.zip", "https://b.org/x.zip"]):
        with pytest.raises(ConfigError, match="different file names"):
            Web(dict.fromkeys(urls), **ABOUT)


# From a folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "mirror" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mirror" / name).write_bytes(content)
    return tmp_path / "mirror"


def test_a_folder_gives_the_files_of_the_source_that_it_mirrors_and_no_others(folder, tmp_path):
    source = Mirror(Hub(REPO, ["rows.parquet", "images/*.zip"], **ABOUT), folder)
    fetched(source, tmp_path / "out")
    assert set(held(tmp_path / "out")) == {"rows.parquet", "images/part-1.zip", "images/part-2.zip", FETCHED}


def test_a_pattern_that_nothing_matches_is_named_with_what_there_is(folder):
    with pytest.raises(DataError, match=r"has no \*.tgz; it has images/part-1.zip, images/part-2.zip, large.zip, rows"):
        Mirror(Hub(REPO, ["rows.parquet", "*.tgz"], **ABOUT), folder).files()


# The command


def sdscratch(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sdscratch", "data", "fetch", *words]
    return subprocess.run(
        command, env=os.environ | env, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120
    )


def hub_words(out: Path) -> list[str]:
    return ["source=diffusiondb", f"source.repo={REPO}", "source.patterns=[large.zip,images/*.zip]", f"out={out}"]


def test_the_command_fetches_from_the_hub_with_the_token_of_the_environment_and_never_shows_it(site, tmp_path):
    site.gated = "hf_secret"
    env = {
        "HF_ENDPOINT": site.address,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    refused = sdscratch(*hub_words(tmp_path / "out"), **env)
    assert refused.returncode == 2 and "agree to its terms on its page first; then set HF_TOKEN" in refused.stderr
    done = sdscratch(*hub_words(tmp_path / "out"), **env, HF_TOKEN="hf_secret")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("licence: CC0 1.0") and "3 files, 3.0 MB, checked" in done.stdout
    found = held(tmp_path / "out")
    assert {name: found[name] for name in found if name != FETCHED} == {
        n: FILES[n] for n in FILES if n != "rows.parquet"
    }
    assert "hf_secret" not in done.stdout + done.stderr + found[FETCHED].decode()


def test_killed_in_the_middle_it_goes_on_and_a_dry_run_brings_nothing(folder, tmp_path):
    words = [*hub_words(tmp_path / "out"), f"mirror={folder}"]
    dry = sdscratch(*words, "dry_run=true")
    assert dry.returncode == 0 and dry.stdout.endswith("nothing was fetched\n") and not (tmp_path / "out").exists()
    assert sdscratch(*words, SDS_CRASH_AT="fetch:chunk").returncode == 9
    assert FETCHED not in held(tmp_path / "out")
    assert sdscratch(*words).returncode == 0
    assert set(held(tmp_path / "out")) == {"large.zip", "images/part-1.zip", "images/part-2.zip", FETCHED}


def test_without_network_it_says_what_to_do(tmp_path):
    done = sdscratch(*hub_words(tmp_path / "out"), HF_HUB_OFFLINE="1")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "mirror=" in done.stderr
    done = sdscratch(*hub_words(tmp_path / "out"), HF_HUB_OFFLINE="0", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "The same command goes on" in done.stderr

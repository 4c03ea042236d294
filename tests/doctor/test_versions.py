"""Packages that are missing, too old, malicious or broken are told by name, and without loading them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sdscratch.doctor import versions
from sdscratch.doctor.versions import imports, torchvision


def install(folder: Path, name: str, version: str, code: str | None = None, requires: str = "") -> None:
    """What pip would leave in `folder` of a package; code: of its __init__.py."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}")
    if code is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder that comes before all installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def failures() -> dict[str, str]:
    return {finding.about: finding.found + finding.remedy for finding in versions.versions() if finding.level != "ok"}


def test_the_packages_of_the_lock_file_are_in_order():
    assert failures() == {} and list(imports()) == []


@pytest.mark.parametrize(("release", "verb"), [("2.6.2", "train"), ("2.6.3", "doctor")])
def test_a_malicious_lightning_is_refused_before_it_is_imported(tmp_path, release, verb):
    canary = tmp_path / "stolen"
    install(tmp_path, "lightning", release, code=f"open({str(canary)!r}, 'w')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    words = [sys.executable, "-m", "sdscratch", verb]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"sdscratch: lightning {release} ")
    assert "steals credentials" in done.stderr and done.stderr.count("\n") == 1
    assert not canary.exists()


def test_a_package_of_another_version_than_pinned_fails_with_the_command_that_mends_it(site):
    install(site, "torch", "2.5.1")
    assert "pip install 'torch>=2.10'" in failures()["torch"]


def test_a_missing_package_of_a_library_is_a_warning(site):
    install(site, "safetensors", "99.0", requires="no-such-package>=3")
    (finding,) = [finding for finding in versions.versions() if finding.about == "no-such-package"]
    assert finding.level == "warn" and "safetensors needs no-such-package>=3" in finding.found


def test_a_torchvision_that_would_break_diffusers_fails(site, monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    install(site, "torchvision", "0.1", code="raise RuntimeError('operator torchvision::nms does not exist')")
    (finding,) = torchvision()
    assert finding.level == "fail"
    assert "torchvision::nms" in finding.found and "pip uninstall torchvision" in finding.remedy


def test_a_package_that_cannot_be_loaded_fails(site, monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning")
    install(site, "lightning", "2.6.6", code="raise OSError('libsomething.so.2: cannot open shared object file')")
    (finding,) = imports()
    assert (finding.level, finding.about) == ("fail", "lightning") and "libsomething.so.2" in finding.found

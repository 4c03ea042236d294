"""A wheel carries conf/ with it, and works from any folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("packaging")


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", ".")
    run(*build, str(CHECKOUT), folder=folder, PIP_DISABLE_PIP_VERSION_CHECK="1")
    (path,) = folder.glob("sdscratch-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    run("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(folder), str(wheel), folder=folder)
    return folder


def test_a_wheel_holds_the_package_and_every_config_and_nothing_else(wheel):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    configs = {f"sdscratch/{path.relative_to(CHECKOUT)}" for path in (CHECKOUT / "conf").rglob("*.yaml")}
    assert configs and configs <= names
    others = {name for name in names - configs if not (name.startswith("sdscratch/") and name.endswith(".py"))}
    pages = {
        "sdscratch/evaluation/curriculum_report.html",
        "sdscratch/evaluation/report.html",
        "sdscratch/interop/model_card.md",
        "sdscratch/page_head.html",
        "sdscratch/prepare/stats/page.html",
    }
    served = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "sdscratch" / "serving" / "page").iterdir()}
    assert "sdscratch/serving/page/index.html" in served and others == pages | served
    assert {"sdscratch/cli.py", "sdscratch/commands/train.py", "sdscratch/models/unet.py"} <= names


def test_an_installed_wheel_finds_its_configs_from_any_folder(installed, tmp_path):
    code = "import sdscratch.config as config; print(config.__file__, config.config_dir())"
    found = run("-c", code, folder=tmp_path, PYTHONPATH=str(installed)).split()
    assert found == [str(installed / "sdscratch/config/__init__.py"), str(installed / "sdscratch/conf")]
    words = ("-m", "sdscratch", "train", "experiment=tiny", "name=try1")
    shown = run(*words, "--help", folder=tmp_path, PYTHONPATH=str(installed))
    assert "usage: sdscratch train" in shown and "unet_tiny" in shown
    composed = run(*words, "--cfg", "job", folder=tmp_path, PYTHONPATH=str(installed))
    assert (
        composed == run(*words, "--cfg", "job", folder=CHECKOUT, PYTHONPATH=str(CHECKOUT))
        and "max_steps: 30" in composed
    )
    assert not list(tmp_path.iterdir())


def test_the_installed_command_needs_nothing_but_the_package(installed, tmp_path):
    shown = run(str(installed / "bin" / "sdscratch"), "--help", folder=tmp_path, PYTHONPATH=str(installed))
    assert "usage: sdscratch VERB" in shown

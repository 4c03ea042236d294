"""Are the packages there that sdscratch and its libraries ask for? Told by their metadata: nothing is imported to find out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec

from sdscratch.doctor.finding import Finding
from sdscratch.errors import SdscratchError

SHOWN = ("torch", "lightning", "diffusers", "transformers", "hydra-core", "wandb")
MALICIOUS = {("lightning", "2.6.2"), ("lightning", "2.6.3")}


def refuse_malicious() -> None:
    """Raise SdscratchError for a release that must not even be imported. To be called before anything loads it."""
    for name, release in MALICIOUS:
        if _installed(name) == release:
            raise SdscratchError(
                f"{name} {release} was published by a thief and steals credentials when imported (GHSA-w37p-236h-pfx3). "
                f"`pip install '{name}>=2.6.6,<3'`, then change every password and key that this account could read"
            )


def versions() -> Iterator[Finding]:
    """The main packages in one line, then whatever is missing or of another version than asked for.

    A requirement of our own that is not met fails; one of a library, of its making, warns.
    """
    from packaging.requirements import Requirement  # here, for `refuse_malicious` comes before every command

    yield Finding("ok", "python", sys.version.partition(" ")[0])
    try:
        requires("sdscratch")
    except PackageNotFoundError:
        yield Finding("warn", "sdscratch", "on the path, but not installed: its pins are unknown", "pip install -e .")
        return
    installed = (f"{name} {release}" for name in SHOWN if (release := _installed(name)))
    yield Finding("ok", "packages", ", ".join(installed))
    seen, waiting = set[str](), ["sdscratch"]
    while waiting:
        package = waiting.pop(0)
        for text in requires(package) or []:
            needed = Requirement(text)
            if needed.marker and not needed.marker.evaluate({"extra": ""}):
                continue
            release = _installed(needed.name)
            if release is None or not needed.specifier.contains(release, prereleases=True):
                ours = package == "sdscratch"
                found = f"{release or 'not installed'}; {package} needs {needed.name}{needed.specifier}"
                remedy = f"pip install '{needed.name}{needed.specifier}', or all of requirements.lock"
                yield Finding("fail" if ours else "warn", needed.name, found, remedy)
            elif needed.name not in seen:
                seen.add(needed.name)
                waiting.append(needed.name)


def torchvision() -> Iterator[Finding]:
    """We need none, but diffusers and transformers import one that is there, and fail with it if it is broken."""
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        yield Finding(
            "fail",
            "torchvision",
            f"{_installed('torchvision')} does not work with torch {_installed('torch')} ({reason}); diffusers imports it",
            "pip uninstall torchvision, which sdscratch does not need, or install the one made for this torch",
        )
    else:
        yield Finding("ok", "torchvision", str(_installed("torchvision")))


def imports() -> Iterator[Finding]:
    """Packages that are there, but cannot be loaded: halves of an installation, libraries of the system that are missing."""
    for name in ("torch", "lightning", "diffusers", "transformers"):
        try:
            import_module(name)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            yield Finding("fail", name, f"cannot be imported ({reason})", f"pip install --force-reinstall {name}")


def _installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None

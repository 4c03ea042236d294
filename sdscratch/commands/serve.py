"""`sdscratch serve`: a model over HTTP, until a signal comes."""

from __future__ import annotations

import gc
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from omegaconf import DictConfig

from sdscratch.commands.known_runs import did_you_mean_run
from sdscratch.config import build
from sdscratch.errors import ConfigError, DataError, StoppedError, check_choice, check_whole

TOKEN = "SDSCRATCH_TOKEN"
"""The variable of the token that callers must show. No key of the configuration: those are printed and saved."""
SENDABLE = re.compile(r"[!-~]+")
NAME = re.compile(r"[^/:\s]+")
ORIGIN = re.compile(r"\*|[a-z-]+://[^/\s]+")


def run(cfg: DictConfig) -> None:
    """Raises StoppedError when told to stop; SdscratchError where the model or the settings are no good, before any answer."""
    check_choice("weights", cfg.weights, ("ema", "raw"))
    check_whole("port", cfg.port, 0, 65535)
    check_whole("queue", cfg.queue)
    check_whole("grace", cfg.grace, 0)
    token = os.environ.get(TOKEN) or None
    if token and not SENDABLE.fullmatch(token):
        raise ConfigError(
            f"{TOKEN} holds what no header can: expected letters, digits and signs of ASCII, without spaces"
        )
    for origin in cfg.cors:
        if not ORIGIN.fullmatch(str(origin)):
            raise ConfigError(f"cors has {origin}: expected * or origins such as https://example.org, without a path")
    for name in cfg.hosts:
        if not NAME.fullmatch(str(name)):
            raise ConfigError(f"hosts has {name}: expected names such as pictures.example.org, without a port")
    if cfg.limits is None:
        raise ConfigError("limits is null: a service has some. Raise single ones, as limits.max_steps=1000")
    with imports_that_stay():
        try:
            from sdscratch.serving.app import create_app
            from sdscratch.serving.server import Server
        except ModuleNotFoundError as error:
            if error.name not in ("fastapi", "uvicorn", "starlette", "httptools"):
                raise
            raise ConfigError("serving needs FastAPI and uvicorn: pip install 'sdscratch[serve]'") from error
        from sdscratch.serving.engine import Engine
        from sdscratch.serving.models import Shelf

    shelf = Shelf(str(cfg.model), Path(cfg.paths.runs))
    chosen = {name: cfg[name] for name in ("weights", "device", "dtype", "queue", "grace")}
    engine = Engine(shelf, build(cfg.limits), **chosen)
    app = create_app(engine, token, cfg.cors, cfg.fixed_model, [*map(str, cfg.hosts)])
    signal.signal(signal.SIGTERM, _stopped)  # not before: imports may take an error for a missing package
    try:
        Server(app, engine, cfg.host, cfg.port, cfg.grace).answer()
    except DataError as error:
        raise DataError(f"{error}{'' if Path(cfg.model).exists() else did_you_mean_run(cfg.model)}") from error


@contextmanager
def imports_that_stay() -> Iterator[None]:
    """Without looking for garbage among what is imported, now or ever: a seventh of the start, and pauses later on."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _stopped(number: int, frame: FrameType | None) -> None:
    raise StoppedError("the service was stopped by SIGTERM", "`sdscratch serve`", number)

"""`sdscratch sample interactive=true`: a model that is loaded once, and a prompt at a time."""

from __future__ import annotations

import io
import re
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import yaml
from omegaconf import DictConfig

from sdscratch.commands.picture_files import PictureFolder
from sdscratch.commands.sample import draw
from sdscratch.commands.sample_request import SETTINGS, check_request, settings_of
from sdscratch.config.words import did_you_mean, escape_interpolations
from sdscratch.errors import ConfigError, SdscratchError, check_choice, check_whole, out_of_memory

if TYPE_CHECKING:
    from sdscratch.pipeline import TextToImage

TEXTS = ("negative_prompt", "init_image")  # taken as they stand
CHANGEABLE = (*SETTINGS, *TEXTS, "seed", "weights", "num_per_prompt", "batch_size")
HELP = """\
a prompt            draws it; prompt=... where it looks like one of the following
key=value           changes a setting for all that comes: guidance_scale=4, or key= for the model's own default
again               the last prompt, with the next seeds
settings            shows them
quit                or the end of the input, or Ctrl-C"""


def converse(pipe: TextToImage, cfg: DictConfig, folder: PictureFolder) -> None:
    """Read lines and do what they say until there are no more. What cannot be done is one line, and the next one is read."""
    talk = Conversation(pipe, cfg, folder)
    is_typed = sys.stdin.isatty()
    if is_typed:
        with suppress(ImportError):
            import readline  # noqa: F401  arrows and history in what is typed
        print(f"{cfg.model} is ready. A prompt, key=value, again, settings, help or quit", file=sys.stderr)
    elif isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a line that is no text is refused as others are
    while True:
        try:
            line = input("> " if is_typed else "").strip()
        except (EOFError, KeyboardInterrupt):
            if is_typed:
                print(file=sys.stderr)
            return
        if line in ("quit", "exit"):
            return
        try:
            talk.hear(line)
        except SdscratchError as error:
            print(error, file=sys.stderr)
        except (RuntimeError, MemoryError) as error:
            if (refusal := out_of_memory(error)) is None:
                raise
            print(refusal, file=sys.stderr)


class Conversation:
    """What was said so far: the settings and the last prompt."""

    def __init__(self, pipe: TextToImage, cfg: DictConfig, folder: PictureFolder) -> None:
        self.pipe, self.cfg, self.folder = pipe, cfg.copy(), folder
        self.prompt = ""

    def hear(self, line: str) -> None:
        """Do what one line says. Raises SdscratchError where that cannot be."""
        setting = re.match(r"(\w+)=(.*)", line, re.DOTALL)
        if line == "again":
            if not self.prompt:
                raise ConfigError("there is no prompt yet to draw again")
            self._draw(self.prompt)
        elif line == "settings":
            print("\n".join(f"{name}={_shown(self.cfg[name])}" for name in CHANGEABLE))
        elif line == "help":
            print(HELP)
        elif setting and setting[1] != "prompt":
            self._change(setting[1], setting[2].strip())
        elif line:
            self._draw(setting[2].strip() if setting else line)

    def _draw(self, prompt: str) -> None:
        self.cfg.seed += draw(self.pipe, self.cfg, [prompt], self.folder)
        self.prompt = prompt

    def _change(self, name: str, text: str) -> None:
        if name not in CHANGEABLE:
            raise ConfigError(
                f"{name} is no setting that can be changed here{did_you_mean(name, CHANGEABLE)}. "
                "A prompt that looks like one: prompt=..."
            )
        changed = self.cfg.copy()
        value = (text or None) if name in TEXTS else _value(text)
        changed[name] = escape_interpolations(value) if isinstance(value, str) else value
        check_request(changed)
        check_choice("weights", changed.weights, ("ema", "raw"))
        check_whole("seed", changed.seed, 0)
        check_whole("batch_size", changed.batch_size)
        self.pipe.defaults.settings(**settings_of(changed))
        self.cfg = changed


def _value(text: str) -> object:
    """A number, a truth, nothing, a list of such; or the text itself."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    parts = value if isinstance(value, list) else [value]
    return value if all(isinstance(part, str | int | float | None) for part in parts) else text


def _shown(value: object) -> str:
    return "" if value is None else str(value)

"""The command line: `sdscratch VERB [key=value ...]`; see the README for a tour.

A verb composes its configuration, checks it and hands it to `run(cfg)` of its module in sdscratch.commands. Modules
load when they are needed, so that help and refusals come at once.
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sdscratch import __version__
from sdscratch.console import forget_lost_readers
from sdscratch.errors import CannotWriteError, ConfigError, SdscratchError, out_of_memory
from sdscratch.verbs import VERBS, Verb

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from sdscratch.config import Group


CONFIG_ERRORS = ("hydra", "omegaconf", "yaml")
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code; `arguments` default to those of the process.

    What the user can mend is one message on stderr (HYDRA_FULL_ERROR=1 adds the traceback). Our own bugs are raised.
    """
    # Threads spin for a moment at barriers, then sleep. By default they spin 30 times longer, and so keep the others from
    # getting there: on a machine that does anything else a step may take ten times as long. Read when torch is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    try:
        _dispatch(list(sys.argv[1:] if arguments is None else arguments))
    except SdscratchError as error:
        return _complain(error, error.exit_code)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return _complain(error, ConfigError.exit_code)
        if error.errno not in DISK_FULL:
            raise
        return _complain(error, CannotWriteError.exit_code)
    except KeyboardInterrupt:
        print("sdscratch: stopped", file=sys.stderr)
        return 130
    except Exception as error:
        if (wanted := out_of_memory(error)) is not None:
            return _complain(wanted, wanted.exit_code)
        if type(error).__module__.partition(".")[0] not in CONFIG_ERRORS:
            raise
        # A key that a command asked for and the user removed, or a value that is no YAML.
        return _complain(ConfigError(" ".join(str(error).split())), ConfigError.exit_code)
    finally:
        forget_lost_readers()
    return 0


def _complain(error: Exception, exit_code: int) -> int:
    with suppress(OSError):  # whoever reads may be gone
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exception(error)
        print(f"sdscratch: {error}", file=sys.stderr)
    return exit_code


def _dispatch(words: list[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print(_overview(VERBS))
    elif words[0] == "help":
        _dispatch([*words[1:], "--help"])
    elif words[0] == "--version":
        print(__version__)
    elif (name := " ".join(words[:2])) in VERBS:
        _run(name, words[2:])
    elif (name := words[0]) in VERBS:
        _run(name, words[1:])
    elif family := {name: verb for name, verb in VERBS.items() if name.startswith(words[0] + " ")}:
        if words[1:2] in ([], ["-h"], ["--help"]):
            print(_overview(family))
        else:
            raise ConfigError(f"there is no verb {' '.join(words[:2])!r}{_nearest(' '.join(words[:2]), family)}")
    else:
        raise ConfigError(f"there is no verb {words[0]!r}{_nearest(words[0], VERBS)}")


def _nearest(word: str, verbs: dict[str, Verb]) -> str:
    from sdscratch.config.words import did_you_mean

    by_last_word = {name.split()[-1]: name for name in verbs}
    return did_you_mean(by_last_word.get(word, word), verbs) or f"; there are: {', '.join(verbs)}"


def _overview(verbs: dict[str, Verb]) -> str:
    width = max(map(len, verbs))
    lines = [f"  {name:{width}}  {verb.help}" for name, verb in verbs.items()]
    return "\n".join(
        [
            "usage: sdscratch VERB [key=value ...]",
            "",
            *lines,
            "",
            "`sdscratch VERB --help` shows examples, and every key.",
        ]
    )


def _run(name: str, words: list[str]) -> None:
    from sdscratch.doctor.versions import refuse_malicious

    refuse_malicious()
    verb = VERBS[name]
    if verb.config is None:
        _run_on_a_run(name, verb, words)
        return
    options = _parser(name).parse_intermixed_args(words)

    from sdscratch import config

    overrides = config.quoted(verb.config, with_names(options.overrides, verb.named))
    if options.config_dir:
        overrides.append(_search_in(options.config_dir))
        if verb.config == "curriculum":  # its phases are composed apart
            overrides.append(f"config_dir={config.literal(options.config_dir)}")
    if options.help:
        print(_help(name, verb, overrides))
    elif options.info:
        print("\n".join(f"{file}: {key}" for file, key in config.config_files(verb.config, overrides)))
    elif options.cfg:
        print(config.to_yaml(config.compose(verb.config, overrides), resolve=options.resolve), end="")
    elif options.multirun:
        if "RANK" in os.environ:
            raise ConfigError("-m starts the runs itself, each on all its devices: call it without torchrun")
        from sdscratch.commands.sweep import sweep

        sweep(verb.module, verb.config, overrides)
    else:
        cfg = config.compose(verb.config, overrides)
        if name != "doctor":  # it fills in what a run would have to say
            _check(name, verb, cfg)
        import_module(f"sdscratch.commands.{verb.module}").run(cfg)


def with_names(words: list[str], names: tuple[str, ...]) -> list[str]:
    """Plain words as values of `names`, in that order; overrides as they are."""
    left = iter(names)
    return [word if "=" in word or word.startswith("~") else f"{next(left, '')}={word}".lstrip("=") for word in words]


def _check(name: str, verb: Verb, cfg: DictConfig) -> None:
    """Raise ConfigError where the configuration does not fit, with a whole command line where it lacks something."""
    from sdscratch.config import check_config, missing_keys

    try:
        check_config(cfg)
    except ConfigError as error:
        if not missing_keys(cfg):
            raise
        advice = f"for example: {verb.examples[0]}\nall choices and keys: sdscratch {name} --help"
        raise ConfigError(f"{error}\n{advice}") from error


def _run_on_a_run(name: str, verb: Verb, words: list[str]) -> None:
    if "-h" in words or "--help" in words:
        print(_help(name, verb, []))
    elif not words or words[0].startswith("-") or "=" in words[0]:
        raise ConfigError(f"{name} needs a run, as in `{verb.examples[0]}`")
    else:
        import_module(f"sdscratch.commands.{verb.module}").run(words[0], words[1:])


def _search_in(folder: str) -> str:
    """The override that lets Hydra find configs in another folder too."""
    from sdscratch.config import literal

    if not Path(folder).is_dir():
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    return f"hydra.searchpath=[{literal('file://' + str(Path(folder).resolve()))}]"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; see {self.prog} --help")


def _parser(name: str) -> _Parser:
    parser = _Parser(prog=f"sdscratch {name}", add_help=False, allow_abbrev=False)
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-c", "--cfg", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("-i", "--info", choices=["defaults"])
    parser.add_argument("--config-dir")
    return parser


FLAGS = """\
  -m                   run once for each combination of comma-separated values: optimizer.lr=1.0e-4,2.0e-4
  --cfg job            print the configuration and stop; with --resolve, with interpolations followed
  --info defaults      print the files that make the configuration, and the key that each goes to
  --config-dir FOLDER  look for phases, experiments and other options there too"""


def _help(name: str, verb: Verb, overrides: list[str]) -> str:
    sections = [f"usage: sdscratch {name} {verb.arguments}", verb.help]
    sections.append("\n".join(["Examples:", *(f"  {example}" for example in verb.examples)]))
    if verb.about_them:
        sections.append(verb.about_them)
    if verb.config is not None:
        from sdscratch.config import compose, config_groups, to_yaml

        if groups := config_groups(verb.config, overrides):
            lines = [f"  {key}: {_marked(group)}" for key, group in groups.items() if group.options]
            sections.append("\n".join(["Choose an option of a group, as in group=option:", *lines]))
        yaml = to_yaml(compose(verb.config, overrides), resolve=False)
        sections.append(
            "Set any key; ??? stands for what has to be set:\n"
            + "".join(f"  {line}\n" for line in yaml.splitlines()).rstrip()
        )
        sections.append(f"Flags:\n{FLAGS}")
    return "\n\n".join(sections)


def _marked(group: Group) -> str:
    return " ".join(f"[{option}]" if option == group.chosen else option for option in group.options)

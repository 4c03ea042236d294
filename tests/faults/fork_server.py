"""A warm process that has torch, Lightning and sdscratch imported, and forks a child per command line: no import is paid twice.

    python fork_server.py SOCKET

One connection is one command: a line of JSON comes in ({"words": [...], "env": {...}, ...}), a line with the child's process
number goes out at once, a line with its exit status when it has ended. The child leads a process group of its own, so that
killing the group kills its loader workers too. The server ends when its standard input does: with the process that started it.
"""

from __future__ import annotations

import json
import os
import resource
import selectors
import signal
import socket
import sys
from typing import Any, NoReturn


def serve(path: str) -> None:
    """Answer connections until standard input ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the attendants
    with socket.socket(socket.AF_UNIX) as server, selectors.DefaultSelector() as selector:
        server.bind(path)
        server.listen()
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while not any(key.fileobj is sys.stdin for key, _ in selector.select()):
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                attend(connection)
            connection.close()


def attend(connection: socket.socket) -> NoReturn:
    """Fork the command, wait for it and say how it ended, in a process that has nothing else to do."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    request = json.loads(connection.makefile().readline())
    if (child := os.fork()) == 0:
        os._exit(command(connection, **request))
    _, status = os.waitpid(child, 0)
    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def command(
    connection: socket.socket,
    words: list[str],
    env: dict[str, str],
    output: str,
    limits: dict[str, int],
    uid: int | None,
) -> int:
    """Be `sdscratch WORDS`. Returns its exit code; an exception that nobody caught is 1, as in a process of its own."""
    os.setsid()
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (file, 1), (file, 2)):
        os.dup2(source, target)
    connection.sendall(f"{os.getpid()}\n".encode())
    connection.close()
    os.environ.update(env)
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, name), (most, most))
    if uid is not None:
        os.setuid(uid)
    try:
        return run(words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def run(words: list[str]) -> int:
    """The command line, with Python's own end of a process: exit functions, and a traceback for a bug.

    `python SCRIPT WORDS` runs a script instead.
    """
    import atexit
    import runpy
    import traceback

    from sdscratch.cli import main

    sys.argv = ["sdscratch", *words]
    try:
        if words[0] == "python":
            sys.argv = words[1:]
            runpy.run_path(words[1], run_name="__main__")
            code: Any = 0
        else:
            code = main(words)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()  # which os._exit leaves out
    return int(code or 0)


def warm_up() -> None:
    """Import what training imports, and what it imports late."""
    import torch

    import sdscratch.commands.data_download
    import sdscratch.commands.train
    import sdscratch.training
    from sdscratch.config import check_config, compose

    torch.set_num_threads(1)
    cfg = compose("train", ["experiment=tiny"])
    check_config(cfg)
    for name in sdscratch.training.__all__:
        getattr(sdscratch.training, name)


if __name__ == "__main__":
    warm_up()
    serve(sys.argv[1])

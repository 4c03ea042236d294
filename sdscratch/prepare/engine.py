"""One function over many shards: on the cores of this machine, or on a Ray cluster. The only place that starts workers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar, get_args

from sdscratch.errors import ConfigError, LostRankError, check_choice, check_whole

Task = TypeVar("Task")
Result = TypeVar("Result")
Handle = TypeVar("Handle")  # of a call that was begun
Engine = Literal["local", "ray"]

RAY_LOOKS_AHEAD = 10_000  # calls: enough for an autoscaler to see what is wanted, few enough for Ray's memory

_number: int | None = None


def map_shards(
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    engine: Engine = "local",
    workers: int = 0,
    gpus: float = 0,
) -> Iterator[Result]:
    """Call `function` on every task and yield what it returns as it comes, in no particular sequence.

    function: of a module, a method, or a partial of one; it and its tasks travel to other processes. It writes its own
        results to disk, whole or not at all, and is called again for a task that was not finished.
    tasks: small, and readable as text: a worker that vanishes is reported by what it was working on.
    engine: "local" for processes of this machine, "ray" for the cluster that RAY_ADDRESS names, or a new one here.
    workers: processes on this machine; 0 does everything in this one. A Ray cluster has as many as it has room for.
    gpus: that a call needs on a Ray cluster. Here, workers share the devices out by `worker_number`.
    Raises the first error of any task, after which nothing goes on: local workers end at once, as they do on Ctrl-C and when
    this process is killed; Ray's end with this process. ConfigError for an unknown engine, LostRankError when a worker is
    killed.
    """
    check_engine(engine, workers)
    if engine == "ray":
        yield from _on_ray(function, tasks, gpus)
    elif workers == 0:
        yield from map(function, tasks)
    else:
        yield from _in_processes(function, tasks, workers)


def check_engine(engine: str, workers: int) -> None:
    """Raise ConfigError for what `map_shards` could not work with: a verb asks before it touches anything."""
    check_whole("workers", workers, least=0)
    check_choice("engine", engine, get_args(Engine))
    if engine == "ray" and find_spec("ray") is None:
        raise ConfigError("engine=ray needs Ray: `pip install 'sdscratch[cluster]'`, or set engine=local")


def worker_number() -> int | None:
    """Which of the local workers this process is, from 0; None where it is none."""
    return _number


def _in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    spawned = get_context("spawn")  # a forked child of a process that has used torch's threads may hang
    ours, theirs = spawned.Pipe(duplex=False)
    begin = (spawned.Value("i", 0), ours)

    def wait_for_any(futures: Iterable[Future[Result]]) -> Iterable[Future[Result]]:
        return wait(futures, return_when=FIRST_COMPLETED).done

    with ProcessPoolExecutor(workers, spawned, initializer=_begin_work, initargs=begin) as pool:

        def submit(task: Task) -> Future[Result]:
            with _deaf_children():
                return pool.submit(function, task)

        try:
            yield from _as_they_end(tasks, workers, submit, wait_for_any, Future.result)
        except BaseException:
            theirs.close()  # which all workers notice
            raise


def _begin_work(count: Any, lifeline: Connection) -> None:
    """In a new worker: take a number, and end with the parent, which alone holds the other end of the lifeline.

    Workers of a killed job must not go on writing beside the next one.
    """
    global _number
    with count.get_lock():
        _number, count.value = count.value, count.value + 1

    def watch() -> None:
        with suppress(EOFError, OSError):
            lifeline.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes begun in here never hear Ctrl-C, which a terminal sends to all: their parent hears it, and ends them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _on_ray(function: Callable[[Task], Result], tasks: Sequence[Task], gpus: float) -> Iterator[Result]:
    import ray

    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    call = ray.remote(num_gpus=gpus)(lambda task: function(task))

    def wait_for_any(handles: Iterable[Any]) -> Iterable[Any]:
        return ray.wait(list(handles))[0]

    try:
        yield from _as_they_end(tasks, RAY_LOOKS_AHEAD, call.remote, wait_for_any, ray.get)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.WorkerCrashedError as error:
        raise LostRankError(f"a worker on the Ray cluster was killed: {error}") from error


def _as_they_end(
    tasks: Iterable[Task],
    at_once: int,
    begin: Callable[[Task], Handle],
    wait_for_any: Callable[[Iterable[Handle]], Iterable[Handle]],
    result: Callable[[Handle], Result],
) -> Iterator[Result]:
    """Keep so many calls going, and yield each result when it is there."""
    remaining, going = iter(tasks), dict[Handle, Task]()
    try:
        while True:
            for task in islice(remaining, at_once - len(going)):
                going[begin(task)] = task
            if not going:
                return
            for handle in wait_for_any(going):
                yield result(handle)
                del going[handle]
    except BrokenProcessPool as error:
        raise LostRankError(
            f"a worker ended without a word while {', '.join(map(str, going.values()))} were worked on. Was it killed for "
            "want of memory? Set fewer workers; the same command goes on where this one stopped"
        ) from error

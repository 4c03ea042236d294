"""One function over many shards: on the cores of this machine, or on a Ray cluster. The only place that starts workers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import connection, get_context, parent_process
from typing import Any, Literal, TypeVar

from sdscratch.errors import ConfigError, check_whole

Task = TypeVar("Task")
Result = TypeVar("Result")
Engine = Literal["local", "ray"]


def map_shards(
    function: Callable[[Task], Result], tasks: Sequence[Task], engine: Engine = "local", workers: int = 0
) -> Iterator[Result]:
    """Call `function` on every task and yield what it returns as it comes, in no particular sequence.

    function: of a module, or a partial of one; it and its tasks travel to other processes. It writes its own results
        to disk, whole or not at all, and is called again for a task that was not finished.
    engine: "local" for processes of this machine, "ray" for the cluster that RAY_ADDRESS names, or a new one here.
    workers: processes on this machine; 0 does everything in this one. A Ray cluster has as many as it has cores.
    Raises the first error of any task, after which no further task is begun; ConfigError for an unknown engine.
    """
    check_whole("workers", workers, least=0)
    if engine == "ray":
        yield from _on_ray(function, tasks)
    elif engine != "local":
        raise ConfigError(f"engine={engine!r} is unknown; expected local or ray")
    elif workers == 0:
        yield from map(function, tasks)
    else:
        yield from _in_processes(function, tasks, workers)


def _in_processes(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    spawned = get_context("spawn")  # a forked child of a process that has used torch's threads may hang
    with ProcessPoolExecutor(min(workers, len(tasks)) or 1, spawned, initializer=_end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(function, task) for task in tasks]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Workers of a killed job must not go on writing beside the next one."""
    parent: Any = parent_process()

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _on_ray(function: Callable[[Task], Result], tasks: Sequence[Task]) -> Iterator[Result]:
    try:
        import ray
    except ImportError as error:
        raise ConfigError("engine=ray needs Ray: `pip install 'sdscratch[cluster]'`, or set engine=local") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False)

    @ray.remote
    def call(task: Task) -> Result:
        return function(task)

    waiting = [call.remote(task) for task in tasks]
    while waiting:
        done, waiting = ray.wait(waiting)
        yield from ray.get(done)

"""The engine: one thread that draws, a short queue before it, and a model that can be changed between two drawings.

All state is the event loop's. The thread is given a job, looks whether it is still wanted after every step, and reports back.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Literal, TypeVar

from sdscratch.errors import ConfigError, SdscratchError, of_the_machine, out_of_memory
from sdscratch.pipeline import Weights
from sdscratch.serving.drawing import Unwanted, draw
from sdscratch.serving.jobs import Job
from sdscratch.serving.limits import Limits
from sdscratch.serving.models import Entry, Served, Shelf
from sdscratch.serving.problems import Problem, log, our_fault, unreadable
from sdscratch.serving.schemas import Health, Wish

T = TypeVar("T")
LONGEST_WAIT = 600  # seconds that anyone is told to wait


class Engine:
    """Give it wishes, get jobs. `start` and `stop` it on the loop that it is to live on.

    queue: how many jobs may wait. grace: seconds that a drawing under way is given when the server stops.
    """

    def __init__(
        self,
        shelf: Shelf,
        limits: Limits,
        *,
        weights: Weights,
        device: str | None,
        dtype: str,
        queue: int,
        grace: float,
    ) -> None:
        self.shelf, self.limits = shelf, limits
        self.status: Literal["loading", "ready", "stopping", "failed"] = "loading"
        self.failure: BaseException | None = None
        self._weights, self._queue, self._grace = weights, queue, grace
        self._load = partial(Served, device=device, dtype=dtype)
        self._served: Served | None = None
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._seconds_each, self._switching = 1.0, False
        self._thread = ThreadPoolExecutor(1, "drawing")

    async def start(self) -> None:
        """Begin to load the model, and then to draw. Where that cannot be, or ends by a bug, `failure` says why."""
        self._loop = asyncio.get_running_loop()
        self._free, self._come = asyncio.Lock(), asyncio.Event()
        self._work = asyncio.create_task(self._load_and_draw())
        self._work.add_done_callback(self._has_ended)

    def stop(self, at_once: bool = False) -> None:
        """Take nothing more, send away who waits, and let what is being drawn end in its time of grace, or at_once."""
        self.status = "stopping"
        while self._waiting:
            self._waiting.popleft().fail(Problem(503, "the server is stopping", hint="try again in a while"))
        if self._running is not None:
            self._loop.call_later(0 if at_once else self._grace, self.cancel, self._running)

    def stop_soon(self, at_once: bool = False) -> None:
        """The same from a signal handler or another thread."""
        if self.status != "loading":
            self._loop.call_soon_threadsafe(self.stop, at_once)

    async def close(self) -> None:
        """Wait for the thread; a drawing that is left is given up after its present step."""
        self.stop()
        if self._running is not None:
            self.cancel(self._running)
        self._work.cancel()
        await asyncio.wait([self._work])
        await asyncio.to_thread(self._thread.shutdown)

    @property
    def served(self) -> Served:
        """The model that is drawn with. Raises Problem, 503, while there is none."""
        if self._served is None:
            raise _loading()
        return self._served

    @property
    def jobs(self) -> int:
        """That wait or run."""
        return len(self._waiting) + (self._running is not None)

    def health(self) -> Health:
        """How things are."""
        served = self._served
        return Health(
            status=self.status,
            device=served.device if served else None,
            queue=self.jobs,
            model=served.entry.id if served else None,
        )

    def refusal(self) -> Problem | None:
        """Why nothing can be asked for just now, whatever it is: 503 while not ready, 429 with a full queue."""
        if self._served is None:
            return _loading()
        if self.status != "ready":
            return Problem(503, "the server is stopping", hint="try again in a while", retry_after=10)
        if len(self._waiting) >= self._queue:
            wait = min(math.ceil(self._seconds_each * self.jobs), LONGEST_WAIT)
            return Problem(429, "too many are waiting already", hint="try again in a while", retry_after=wait)
        return None

    def submit(self, wish: Wish) -> Job:
        """Put it in the queue. Raises Problem: a refusal, or 422 for what cannot be drawn."""
        if problem := self.refusal():
            raise problem
        served = self.served
        parameters = self.limits.settle(wish, served.pipe.defaults, served.factor, served.usable_weights)
        job = Job(parameters, self.jobs)
        self._waiting.append(job)
        self._come.set()
        return job

    def cancel(self, job: Job) -> None:
        """Wherever it is; one that has ended does not mind."""
        if job.ended:
            return
        with suppress(ValueError):
            self._waiting.remove(job)
        job.cancel()
        self._move_up()

    async def switch(self, entry: Entry, weights: Weights) -> None:
        """Draw with another model as soon as the present drawing is done. Raises Problem, and keeps the old one."""
        if self._switching:
            raise Problem(409, "another model is being loaded", "id", "try again in a moment", retry_after=5)
        self._switching = True
        try:
            async with self._free:
                self._served = await self._in_thread(partial(self._load, entry, weights))
        except Exception as error:
            known = error if isinstance(error, SdscratchError) else of_the_machine(error)
            if known is None:
                raise
            log.warning("%s", known)
            raise Problem(409, f"{entry.id} cannot be loaded", "id", "the log of the server says why") from error
        finally:
            self._switching = False

    async def _load_and_draw(self) -> None:
        self._served = await self._in_thread(partial(self._load, self.shelf.first, self._weights))
        self.status = "ready"
        while True:
            await self._come.wait()
            async with self._free:
                if self._waiting:
                    await self._draw(self._waiting.popleft())
                else:
                    self._come.clear()

    def _has_ended(self, work: asyncio.Task[None]) -> None:
        if not work.cancelled():
            self.stop(at_once=True)
            self.status, self.failure = "failed", work.exception()

    async def _draw(self, job: Job) -> None:
        served, begin = self.served, time.perf_counter()
        self._running = job
        job.start(served.entry.id)
        self._move_up()
        try:
            self.limits.check(job.parameters, served.factor, served.usable_weights)  # it was asked of another, maybe
            images, notes = await self._in_thread(partial(draw, served, job, partial(self._report, job)))
        except Unwanted:
            pass
        except Exception as error:
            if not job.ended:
                job.fail(_problem(error))
        else:
            seconds = time.perf_counter() - begin
            self._seconds_each += 0.2 * (seconds - self._seconds_each)
            if not job.ended:
                job.finish(images, notes, round(seconds, 3))
        finally:
            self._running = None
            self._move_up()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._thread, work)

    def _report(self, job: Job, step: int, preview: str) -> None:
        with suppress(RuntimeError):  # the loop is gone: nobody listens
            self._loop.call_soon_threadsafe(job.advance, step, preview)

    def _move_up(self) -> None:
        for position, job in enumerate(self._waiting, self._running is not None):
            job.move_to(position)


def _loading() -> Problem:
    return Problem(503, "the model is being loaded", hint="try again in a moment", retry_after=2)


def _problem(error: Exception) -> Problem:
    """What callers hear of a drawing that went wrong."""
    if isinstance(error, Problem):
        return error
    if (known := out_of_memory(error)) is not None:
        log.error("%s", known)
        return Problem(422, "the memory does not suffice for that", "n", "ask for fewer pictures, or smaller ones")
    if isinstance(error, ConfigError):
        return Problem(422, str(error))
    if isinstance(error, SdscratchError):
        return unreadable(error)
    log.error("a drawing failed", exc_info=error)
    return our_fault()

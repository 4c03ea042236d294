"""A job: one request for pictures, from the queue to its end; and the book in which jobs are found again."""

from __future__ import annotations

import asyncio
import secrets
import threading
from collections.abc import AsyncIterator

from sdscratch.serving.problems import Problem
from sdscratch.serving.schemas import JobView, Parameters, Status

KEPT_BYTES = 256 * 1024**2
KEPT_JOBS = 1000


class Job:
    """Lives on the event loop, where alone it changes; the drawing thread only looks whether it is `unwanted`.

    Whoever follows it is woken at every change and sees how things are then: a slow reader misses some, and holds up nothing.
    """

    def __init__(self, parameters: Parameters, position: int) -> None:
        self.id = secrets.token_urlsafe(16)  # who knows it may see the pictures and cancel
        self.parameters, self.position = parameters, position
        self.status: Status = "queued"
        self.step, self.preview = 0, ""
        self.images: list[str] = []
        self.notes: list[str] = []
        self.model: str | None = None
        self.seconds: float | None = None
        self.problem: Problem | None = None
        self.watchers = 0
        self.unwanted = threading.Event()
        self._change = asyncio.Event()

    @property
    def ended(self) -> bool:
        """Whether nothing will change any more."""
        return self.status in ("done", "failed", "cancelled")

    @property
    def size(self) -> int:
        """Bytes that it keeps."""
        return sum(map(len, self.images)) + len(self.preview)

    def move_to(self, position: int) -> None:
        """Behind `position` others."""
        if position != self.position:
            self.position = position
            self._changed()

    def start(self, model: str) -> None:
        """Its turn has come."""
        self.status, self.position, self.model = "running", 0, model
        self._changed()

    def advance(self, step: int, preview: str) -> None:
        """After a step. preview: a data URI, or "" to leave the last one."""
        if self.status == "running":
            self.step, self.preview = step, preview or self.preview
            self._changed()

    def finish(self, images: list[str], notes: list[str], seconds: float) -> None:
        """Drawn, in so many seconds. notes: what whoever asked should know."""
        self.status, self.step, self.preview = "done", self.parameters.steps, ""
        self.images, self.notes, self.seconds = images, notes, seconds
        self._changed()

    def fail(self, problem: Problem) -> None:
        """There will be no pictures."""
        self.status, self.problem, self.preview = "failed", problem, ""
        self._changed()

    def cancel(self) -> None:
        """Nobody wants it any more. A drawing that is under way stops after its present step."""
        self.unwanted.set()
        self.status, self.preview = "cancelled", ""
        self._changed()

    async def follow(self) -> AsyncIterator[Job]:
        """Itself, now and whenever it has changed, until it has ended."""
        self.watchers += 1
        try:
            while True:
                change, last = self._change, self.ended
                yield self
                if last:
                    return
                await change.wait()
        finally:
            self.watchers -= 1

    async def end(self) -> None:
        """Wait for it."""
        while not self.ended:
            await self._change.wait()

    def view(self) -> JobView:
        """As GET /jobs/{id} tells it."""
        return JobView(
            id=self.id,
            status=self.status,
            position=self.position,
            step=self.step,
            steps=self.parameters.steps,
            images=self.images,
            notes=self.notes,
            parameters=self.parameters,
            model=self.model,
            generation_time_s=self.seconds,
            error=self.problem.body if self.problem else None,
        )

    def _changed(self) -> None:
        change, self._change = self._change, asyncio.Event()
        change.set()


class JobBook:
    """Jobs by their id. The oldest that have ended are forgotten when there are many, or their pictures are."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def enter(self, job: Job) -> None:
        """From now on it is found."""
        self._jobs[job.id] = job
        ended = [job for job in self._jobs.values() if job.ended]
        size = sum(job.size for job in ended)
        for job in ended:
            if size <= KEPT_BYTES and len(self._jobs) <= KEPT_JOBS:
                break
            size -= job.size
            del self._jobs[job.id]

    def find(self, id: str) -> Job:
        """Raises Problem, 404."""
        if (job := self._jobs.get(id)) is None:
            raise Problem(404, "there is no such job", "id", "it may be long over: ask for it again")
        return job

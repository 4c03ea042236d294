"""The API: which address does what."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import FileResponse, JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from fastapi.staticfiles import StaticFiles

from sdscratch import __version__
from sdscratch.diffusion.samplers import SAMPLERS
from sdscratch.serving.engine import Engine
from sdscratch.serving.guard import CarefulHeaders, KnownName, NoRoom, OurFault, Token, WholeBody
from sdscratch.serving.jobs import Job, JobBook
from sdscratch.serving.models import Served
from sdscratch.serving.problems import Problem, ProblemBody, answer_problems
from sdscratch.serving.runs import runs_router
from sdscratch.serving.schemas import (
    Accepted,
    Configuration,
    Drawn,
    Health,
    JobView,
    ModelChoice,
    ModelView,
    Wish,
)
from sdscratch.serving.waiting import gone, until_either

PAGE = Path(__file__).with_name("page")
ANSWERS = {
    409: "it cannot be read from the disk, or another model is being loaded",
    408: "the request did not arrive in time",
    413: "the body is too large",
    421: "the server has another name",
    422: "a value does not fit",
    429: "too many are waiting; see Retry-After",
    503: "not ready, or stopping; see Retry-After",
}


def create_app(
    engine: Engine,
    token: str | None = None,
    cors: Collection[str] = (),
    fixed: bool = False,
    hosts: Collection[str] = (),
) -> FastAPI:
    """The app of an engine, which lives as long as the app does.

    token: what callers must show. cors: origins whose pages may call. fixed: whether the model may not be changed.
    hosts: names of the server beside localhost; without any, others may be used from other machines.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        yield
        await engine.close()

    app = FastAPI(
        title="sdscratch",
        version=__version__,
        description="Pictures from prompts.",
        lifespan=lifespan,
        docs_url=None,  # they would load programs from another host
        redoc_url=None,
        responses={status: {"model": ProblemBody, "description": what} for status, what in ANSWERS.items()},
    )
    answer_problems(app)
    app.add_middleware(NoRoom, refusal=engine.refusal)  # the first that is added is the last that is asked
    app.add_middleware(Token, token=token)
    app.add_middleware(OurFault)
    if cors:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=[*cors],
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Retry-After"],
        )
    app.add_middleware(KnownName, names=hosts)
    app.add_middleware(WholeBody, seconds=engine.limits.read_seconds)
    app.add_middleware(CarefulHeaders)
    _add_drawing(app, engine)
    _add_facts(app, engine, token is not None, fixed)
    app.include_router(runs_router(engine.shelf.runs))
    _add_page(app)
    return app


def _add_drawing(app: FastAPI, engine: Engine) -> None:
    book = JobBook()

    async def known(id: str) -> Job:
        return book.find(id)

    KnownJob = Annotated[Job, Depends(known)]
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": ProblemBody, "description": "there is no such job"}}

    @app.post("/generate", tags=["drawing"])
    async def generate(wish: Wish, request: Request) -> Drawn:
        """Draw and wait for it. Whoever hangs up cancels."""
        job = engine.submit(wish)
        try:
            await until_either(job.end(), gone(request))
        finally:
            engine.cancel(job)
        return _drawn(job)

    @app.post("/jobs", status_code=202, tags=["drawing"])
    async def create_job(wish: Wish) -> Accepted:
        """Put it in the queue. It stays there, and its pictures for a while, whether anyone watches or not."""
        job = engine.submit(wish)
        book.enter(job)
        return Accepted(id=job.id, position=job.position)

    @app.get("/jobs/{id}", tags=["drawing"], responses=unknown)
    async def get_job(job: KnownJob) -> JobView:
        """How it is now."""
        return job.view()

    @app.get("/jobs/{id}/events", tags=["drawing"], responses=unknown, response_class=EventSourceResponse)
    async def follow_job(job: KnownJob) -> AsyncIterator[ServerSentEvent]:
        """How it goes, until it ends: `queue`, `step`, then `done`, `failed` or `cancelled`."""
        shown = ""
        async for now in job.follow():
            yield _event(now, shown)
            shown = now.preview

    @app.delete("/jobs/{id}", tags=["drawing"], responses=unknown)
    async def cancel_job(job: KnownJob) -> JobView:
        """Give it up: at once while it waits, after the present step while it is drawn."""
        engine.cancel(job)
        return job.view()


def _add_facts(app: FastAPI, engine: Engine, auth: bool, fixed: bool) -> None:
    @app.get("/health", tags=["facts"], responses={503: {"model": Health, "description": "not ready"}})
    async def health() -> Health:
        """200 when a request would be drawn, else 503."""
        health = engine.health()
        return health if health.status == "ready" else JSONResponse(health.model_dump(), 503)  # type: ignore[return-value]

    @app.get("/config", tags=["facts"])
    async def configuration() -> Configuration:
        """What may be asked for, and what one gets unasked."""
        return _configuration(engine, engine.served, auth)

    @app.get("/models", tags=["facts"])
    def models() -> list[ModelView]:
        """Those that there are: the one that the server was started with, and finished runs."""
        current = engine.served.entry.id
        return [
            ModelView(id=entry.id, kind=entry.kind, weights=entry.weights, current=entry.id == current)
            for entry in engine.shelf.entries()
        ]

    @app.put("/models/current", tags=["facts"])
    async def choose_model(choice: ModelChoice) -> Configuration:
        """Draw with another model from now on: for everybody. Answers when it is loaded."""
        if fixed:
            raise Problem(403, "the model of this server is fixed", "id")
        if (entry := await run_in_threadpool(engine.shelf.find, choice.id)) is None:
            raise Problem(404, "there is no such model", "id", "GET /models has those that there are")
        await engine.switch(entry, choice.weights)
        return _configuration(engine, engine.served, auth)


def _add_page(app: FastAPI) -> None:
    app.mount("/page", StaticFiles(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Cache-Control": "no-cache"})


def _drawn(job: Job) -> Drawn:
    """Raises Problem where there are no pictures."""
    if job.problem is not None:
        raise job.problem
    if job.status != "done":
        raise Problem(503, "the drawing was cancelled", hint="try again in a while", retry_after=10)
    assert job.model is not None and job.seconds is not None
    return Drawn(
        **job.parameters.model_dump(),
        image=job.images[0],
        images=job.images,
        model=job.model,
        notes=job.notes,
        generation_time_s=job.seconds,
    )


def _event(job: Job, shown: str) -> ServerSentEvent:
    """How the job is now. shown: the preview that this follower has already."""
    if job.status == "queued":
        return ServerSentEvent(event="queue", data={"position": job.position})
    if job.status == "running":
        preview = job.preview if job.preview != shown else None
        data = {"step": job.step, "steps": job.parameters.steps, "preview": preview or None}
        return ServerSentEvent(event="step", data=data)
    if job.status == "done":
        return ServerSentEvent(event="done", data=job.view())
    return ServerSentEvent(event=job.status, data=job.problem.body if job.problem else {})


def _configuration(engine: Engine, served: Served, auth: bool) -> Configuration:
    defaults, limits = served.pipe.defaults, engine.limits
    return Configuration(
        model={
            "id": served.entry.id,
            "kind": served.entry.kind,
            "weights": served.weights,
            "prediction_type": served.pipe.prediction_type,
        },
        defaults=limits.unasked(defaults, served.factor, served.weights),
        limits=limits.ranges(served.factor),
        samplers=list(SAMPLERS),
        sizes=limits.sizes(defaults.size, served.factor),
        weights=served.usable_weights,
        examples=served.examples,
        max_n=limits.max_n,
        max_cost=limits.max_cost,
        auth=auth,
        version=__version__,
    )

"""What an answer says when there is no picture: {error, field, hint}, never a traceback."""

from __future__ import annotations

import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from sdscratch.errors import SdscratchError

log = logging.getLogger("sdscratch.serving")
LONGEST_NAME = 100  # of a field that there is not
SEE_RANGES = "GET /config has all ranges"


class ProblemBody(BaseModel):
    """error: what was found and expected. field: which of the request's. hint: what to do."""

    error: str = Field(examples=["steps is 100000: expected 1 to 150"])
    field: str | None = Field(None, examples=["steps"])
    hint: str | None = Field(None, examples=[SEE_RANGES])


class Problem(Exception):
    """An answer that is no picture. retry_after: seconds, for those who may come again."""

    def __init__(
        self, status: int, error: str, field: str | None = None, hint: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(error)
        self.status, self.retry_after = status, retry_after
        self.body = ProblemBody(error=error, field=field, hint=hint)

    def response(self, **headers: str) -> JSONResponse:
        """As sent."""
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        return JSONResponse(self.body.model_dump(), self.status, headers)


def answer_problems(app: FastAPI) -> None:
    """Let every error of `app` be answered in the one form."""

    @app.exception_handler(Problem)
    async def _(request: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        return _unfit(error).response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, where a body is too deep or a number too long to be read as JSON
            return Problem(422, "the body cannot be read as JSON", hint=SEE_RANGES).response()
        return Problem(error.status_code, str(error.detail), hint="GET /openapi.json describes the API").response(
            **(error.headers or {})
        )

    @app.exception_handler(SdscratchError)
    async def _(request: Request, error: SdscratchError) -> JSONResponse:
        return unreadable(error).response()


def unreadable(error: SdscratchError) -> Problem:
    """What callers hear where a file is gone or damaged; which one is for the log."""
    log.warning("%s", error)
    return Problem(409, "it cannot be read from the disk", hint="the log of the server says why")


def our_fault() -> Problem:
    """What callers hear of a bug; its traceback is for the log."""
    return Problem(500, "the server failed at this request", hint="its log says why; other requests are not affected")


def _unfit(error: RequestValidationError) -> Problem:
    """The first of the things that do not fit. Values are not repeated: they may be long, or no text at all."""
    first = error.errors()[0]
    where = [str(part)[:LONGEST_NAME] for part in first["loc"][1:]] if first["type"] != "json_invalid" else []
    field = where[0] if where else None
    what = first["msg"].removeprefix("Value error, ")
    return Problem(422, f"{field}: {what}" if field else f"the body does not fit: {what}", field, SEE_RANGES)

"""What an answer says when there is no picture: {error, field, hint}, never a traceback."""

from __future__ import annotations

import json
import logging

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Match

from sdscratch.errors import SdscratchError

log = logging.getLogger("sdscratch.serving")
LONGEST_NAME = 100  # of a field that there is not
LONGEST_VALUE = 40
SEE_RANGES = "GET /config has all ranges"
SEE_API = "GET /openapi.json describes the API"
EXPECTED = {  # by pydantic's word for what is wrong; in braces what it tells of it
    "model_attributes_type": "a JSON object, sent as Content-Type: application/json",
    "string_type": "a text",
    "string_unicode": "text in Unicode",
    "string_too_short": "some text",
    "string_too_long": "at most {max_length} characters",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number of fewer digits",
    "float_type": "a number",
    "float_size": "a number of fewer digits",  # ours: to pydantic such a one is none
    "finite_number": "a finite number",
    "greater_than_equal": "at least {ge:.15g}",
    "less_than_equal": "at most {le:.15g}",
    "literal_error": "{expected}",
    "value_error": "{error}",  # of our own validators
}


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
        return _unfit(error, request.scope["route"]).response()

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        if error.status_code == 400:  # FastAPI's, where a body is too deep or a number too long to be read as JSON
            return Problem(422, "the body cannot be read as JSON", hint=SEE_API).response()
        headers = dict(error.headers or {})
        if error.status_code == 405:
            headers["Allow"] = _methods(request) or headers.get("Allow", "GET")
        words = {
            404: "there is nothing at this address",
            405: f"{request.method} is not for this address: expected {headers.get('Allow')}",
        }
        return Problem(error.status_code, words.get(error.status_code, str(error.detail)), hint=SEE_API).response(
            **headers
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


def _methods(request: Request) -> str:
    """Of all routes of the app to this address: Starlette names the first one's. Empty for those of its routers."""
    routes = [route for route in request.app.routes if isinstance(route, APIRoute)]
    fitting = [route for route in routes if route.matches(request.scope)[0] is Match.PARTIAL]
    return ", ".join(sorted(method for route in fitting for method in route.methods or ()))


def _unfit(error: RequestValidationError, route: APIRoute) -> Problem:
    """The first of the things that do not fit, in our words: what was found, and what is expected."""
    first = error.errors()[0]
    kind, (part, *where) = first["type"], first["loc"]
    if kind == "json_invalid":
        return Problem(422, f"the body cannot be read as JSON, from character {where[0] + 1} on", hint=SEE_API)
    if kind == "string_unicode" and not where:  # it is a field's name
        kind, where = "extra_forbidden", [first["input"]]
    elif kind == "float_type" and type(first["input"]) is int:
        kind = "float_size"
    name = str(where[0])[:LONGEST_NAME] if where else "the body"
    field = name.encode(errors="backslashreplace").decode() if where else None  # UTF-8 has no half pairs
    if kind == "missing":
        return Problem(422, f"{name} is missing", field, SEE_API)
    if kind == "extra_forbidden":
        body = route.body_field and route.body_field.field_info.annotation
        assert isinstance(body, type) and issubclass(body, BaseModel)  # nothing else forbids fields
        known = ", ".join(body.model_fields)
        return Problem(422, f"there is no field {json.dumps(name)}: expected some of {known}", field, SEE_API)
    if kind not in EXPECTED:
        return Problem(422, f"{name} does not fit: {first['msg']}", field, SEE_API)
    expected = EXPECTED[kind].format_map(first.get("ctx", {}))
    hint = SEE_RANGES if part == "body" and where else SEE_API
    return Problem(422, f"{name} is {_found(first['input'])}: expected {expected}", field, hint)


def _found(value: object) -> str:
    """A value in a few words: it may be long, or no text at all."""
    match value:
        case list():
            return "a list"
        case dict():
            return "an object"
        case bytes():
            return "not said to be JSON"
        case str() if not value.strip():
            return "empty"
    text = json.dumps(value)
    if len(text) <= LONGEST_VALUE:
        return text
    return f"a text of {len(value)} characters" if isinstance(value, str) else f"a number of {len(text)} digits"

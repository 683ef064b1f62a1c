"""The envelope of every answer, and which error becomes which answer. Knows no endpoints."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from agentlightning.kit.errors import AgentLightningError, BadInputError
from agentlightning.platform.context import current
from agentlightning.platform.database import DatabaseError, is_unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

_CODES = {400: "BAD_REQUEST", 401: "UNAUTHORIZED", 403: "FORBIDDEN", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}
_MAX_PROBLEMS = 20


class Success(BaseModel, Generic[T]):
    """What a call that worked answers."""

    success: bool = True
    data: T
    message: str
    timestamp: str
    request_id: str


class Problem(BaseModel):
    """What went wrong; `code` is stable, `hint` the next step."""

    code: str
    message: str
    hint: str
    details: dict[str, Any]


class Failure(BaseModel):
    """What a call that failed answers."""

    success: bool = False
    error: Problem
    timestamp: str
    request_id: str


class HttpError(AgentLightningError):
    """An error of HTTP itself: no such path, method, host ..."""

    def __init__(self, status: int, message: str, *, code: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.code = code or _CODES.get(status, f"HTTP_{status}")


def answer(data: Any, message: str = "", *, status: int = 200, **top: Any) -> Response:
    """A success with `data` (models, dataclasses, plain values); `top` stands beside it at the top level."""
    body = {"success": True, "data": data, "message": message, **_about(), **top}
    return Response(orjson.dumps(body, default=_plain), status, media_type="application/json")


def error_answer(error: AgentLightningError) -> Response:
    """The failure that says so."""
    body = {"success": False, "error": error.as_dict(), **_about()}
    headers = {"WWW-Authenticate": 'Bearer realm="agent-lightning"'} if error.status == 401 else {}
    raw = orjson.dumps(body, default=str)
    return Response(raw, error.status, headers, media_type="application/json")


def as_known(error: BaseException) -> AgentLightningError:
    """The error as one that may leave; what is unexpected is logged and says nothing of the inside."""
    if isinstance(error, AgentLightningError):
        if error.status >= 500:
            log.warning("request %s: %s", current().request_id, error)
        return error
    if is_unavailable(error):
        log.error("request %s: the database does not answer (%s)", current().request_id, type(error).__name__)
        return DatabaseError("The database does not answer.", hint="Try again in a moment; see /api/v2/health.")
    if isinstance(error, DataError):  # the database's own limits; what else is wrong is ours
        return BadInputError("A value does not fit the database.")
    log.error("request %s failed", current().request_id, exc_info=error)
    return HttpError(500, "Something went wrong here.", code="INTERNAL_ERROR", hint="Tell us the request_id.")


def add_handlers(app: FastAPI) -> None:
    """Envelopes for what endpoints raise, for bad input and for HTTP's own errors."""

    async def known(_: Request, error: Exception) -> Response:
        return error_answer(as_known(error))

    async def http(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        answered = error_answer(HttpError(status, _words(error)))
        answered.headers.update((error.headers or {}) if isinstance(error, HTTPException) else {})
        if status == 405:  # the router knows the methods of the first route with this path only
            answered.headers["Allow"] = ", ".join(_methods(app.router.routes, request.scope))
        return answered

    async def invalid(_: Request, error: Exception) -> Response:
        problems = error.errors() if isinstance(error, RequestValidationError) else []
        wrong = BadInputError(
            "The request is not what this call takes.",
            hint="/docs says what it takes.",
            details={"problems": _problems(problems)},
        )
        wrong.code = "VALIDATION_FAILED"
        return error_answer(wrong)

    app.add_exception_handler(AgentLightningError, known)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)


def _methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """Of all routes with the same path, which of those that fit is the one with the fewest variables."""
    known = [route for route in routes if isinstance(route, Route)]
    fits = [route.path for route in known if route.matches(scope)[0] is not Match.NONE]
    path = min(fits, key=lambda path: path.count("{"), default=None)
    return sorted({method for route in known if route.path == path for method in route.methods or ()})


def _words(error: Exception) -> str:
    status = error.status_code if isinstance(error, HTTPException) else 500
    return {404: "There is nothing here.", 405: "This path does not take this method."}.get(
        status, str(getattr(error, "detail", "")) or "The request failed."
    )


def _problems(found: Any) -> list[dict[str, str]]:
    # Without the input: it may be a password.
    return [
        {"where": ".".join(str(part) for part in item["loc"])[:200], "what": str(item["msg"])[:300]}
        for item in list(found)[:_MAX_PROBLEMS]
    ]


def _about() -> dict[str, str]:
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"timestamp": now, "request_id": current().request_id}


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} does not go into an answer")

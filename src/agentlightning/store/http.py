"""Requests and responses of the store's endpoints: bodies, errors, tokens, clients that hang up. Knows no verbs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from agentlightning.kit.errors import AgentLightningError
from agentlightning.store import wire
from agentlightning.store.access import check_token

logger = logging.getLogger(__name__)

T = TypeVar("T")
Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


class ClientGoneError(Exception):
    """The client closed the connection while its call was waiting."""


def respond(request: Request, value: Any, status: int = 200) -> Response:
    """Encode `value` as the client accepts it."""
    if wire.MSGPACK in request.headers.get("accept", ""):
        return Response(wire.msgpack_encoder.encode(value), status, media_type=wire.MSGPACK)
    return Response(wire.json_encoder.encode(value), status, media_type=wire.JSON)


def respond_error(error: AgentLightningError, status: int | None = None) -> Response:
    """The JSON form of an error, under its HTTP status."""
    status = status or error.status
    headers = {"www-authenticate": "Bearer"} if status == 401 else None
    return Response(wire.json_encoder.encode(error.as_dict()), status, headers, media_type=wire.JSON)


def unexpected(error: Exception, what: str) -> AgentLightningError:
    """Log a fault of the program and give the error that the client sees instead."""
    logger.error("%s failed", what, exc_info=error)
    return AgentLightningError("The store failed unexpectedly.", hint="See the server's log for the cause.")


def guarded(endpoint: Endpoint, token: str | None) -> Endpoint:
    """Check the token and turn every exception into a JSON error."""

    async def endpoint_with_errors(request: Request) -> Response:
        try:
            if token is not None:
                check_token(request.headers.get("authorization"), token)
            return await endpoint(request)
        except AgentLightningError as error:
            return respond_error(error)
        except ClientGoneError:
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001 - the boundary: nothing may leave as a bare 500
            return respond_error(unexpected(error, f"{request.method} {request.url.path}"))

    return endpoint_with_errors


async def read_body(request: Request, kind: type[T]) -> T:
    """The decoded body; an empty one counts as `{}`.

    Raises:
        BadInputError: It is not what `kind` says.
    """
    content_type = request.headers.get("content-type", wire.JSON)
    body = await request.body()
    return wire.decode(body, kind, content_type) if body else wire.convert({}, kind)


async def read_fields(request: Request) -> dict[str, Any]:
    """Query parameters (GET) or the body's fields, with those of the path."""
    if request.method != "GET":
        return {**await read_body(request, dict[str, Any]), **request.path_params}
    fields: dict[str, Any] = {}
    for key, value in request.query_params.multi_items():
        if key.endswith("_in"):
            fields.setdefault(key, []).append(value)
        else:
            fields[key] = value
    return {**fields, **request.path_params}


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass  # a body that nobody has read


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await `work`, but cancel it when the client hangs up: a claim must not go to someone who has left.

    Raises:
        ClientGoneError: The client hung up first.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGoneError
        return task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)

"""Requests and responses of the store's endpoints: bodies, errors, tokens, clients that hang up. Knows no verbs."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from agentlightning.config import Settings
from agentlightning.kit.errors import AgentLightningError, NotFoundError, PayloadTooLargeError
from agentlightning.store import wire
from agentlightning.store.access import check_token

logger = logging.getLogger(__name__)

_AROUND_VALUES_BYTES = 2**20

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


async def no_such_route(request: Request, error: Exception) -> Response:
    """What Starlette says of a path or method without a route, in the form of our errors."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    text = f"{request.method} {request.url.path}: {error.detail if isinstance(error, HTTPException) else error}."
    return respond_error(NotFoundError(text, hint="The routes are those of 0.3, below /v1/agl."), status)


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
        except (ClientGoneError, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it
        except Exception as error:  # noqa: BLE001 - the boundary: nothing may leave as a bare 500
            return respond_error(unexpected(error, f"{request.method} {request.url.path}"))

    return endpoint_with_errors


@functools.cache
def largest_body() -> int:
    """How many bytes a request may have: two values of the largest size, and what goes around them."""
    return 2 * Settings().max_value_bytes + _AROUND_VALUES_BYTES


async def whole_body(request: Request) -> bytes:
    """The body as it was sent.

    Raises:
        PayloadTooLargeError: It is larger than `largest_body`; it was read to its end and not kept.
    """
    limit = largest_body()
    if int(request.headers.get("content-length", limit + 1)) <= limit:
        return await request.body()
    pieces: list[bytes] = []
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size <= limit:
            pieces.append(piece)
        else:
            pieces.clear()
    if size > limit:
        raise body_too_large(f"The request has {size:,} bytes")
    return b"".join(pieces)


def body_too_large(what: str) -> PayloadTooLargeError:
    """The error about a body; `what` begins the sentence."""
    return PayloadTooLargeError(
        f"{what}, more than the {largest_body():,} that this server takes.",
        hint="Send less at once, or set AGL_MAX_VALUE_BYTES of the server to more than half of it.",
    )


async def read_body(request: Request, kind: type[T]) -> T:
    """The decoded body; an empty one counts as `{}`.

    Raises:
        BadInputError: It is not what `kind` says.
        PayloadTooLargeError: See `whole_body`.
    """
    content_type = request.headers.get("content-type", wire.JSON)
    body = await whole_body(request)
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

"""Around every request: its id, the security headers, the last resort for errors, hosts and origins, body size.

Plain ASGI: nothing is buffered on the way out, and websockets pass the same checks.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentlightning.kit.errors import AgentLightningError, PayloadTooLargeError
from agentlightning.platform.context import RequestContext, reset_context, set_context
from agentlightning.platform.envelope import HttpError, as_known, error_answer
from agentlightning.platform.metrics import Metrics
from agentlightning.platform.origins import Addresses, Origins

SECURITY_HEADERS: Mapping[str, str] = MappingProxyType(
    {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "X-XSS-Protection": "1; mode=block",
        "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
        "Content-Security-Policy": "default-src 'self'",
        "Referrer-Policy": "strict-origin-when-cross-origin",
    }
)

_FIXED = [(name.lower().encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
_FIXED_NAMES = frozenset(name for name, _ in _FIXED) | {b"x-request-id"}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{8,64}")
_BODY_S = 30.0


class ContextMiddleware:
    """Outermost: makes the request's context, completes every answer, and answers what nobody else has."""

    def __init__(self, app: ASGIApp, *, addresses: Addresses, metrics: Metrics) -> None:
        self._app = app
        self._addresses = addresses
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        peer = (scope.get("client") or ("", 0))[0]
        context = RequestContext(_request_id(headers), self._addresses.of(peer, headers))
        scope.setdefault("state", {})["context"] = context
        token = set_context(context)
        started, status = time.perf_counter(), 0

        async def complete(message: Message) -> None:
            nonlocal status
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message["headers"] = _completed(message.get("headers", ()), context)
            await send(message)

        try:
            await self._app(scope, receive, complete)
        except Exception as error:
            known = as_known(error)  # logs what is unexpected
            if status:
                raise  # half an answer is out: the server has to cut the connection
            await refuse(known, scope, receive, complete)
        finally:
            method = scope.get("method", "WEBSOCKET")
            self._metrics.count(method, context.route, status or 101, time.perf_counter() - started)
            reset_context(token)


def _completed(headers: Iterable[tuple[bytes, bytes]], context: RequestContext) -> list[tuple[bytes, bytes]]:
    """An answer's headers with ours, which replace others of the same name."""
    own = {name.lower().encode(): value.encode() for name, value in context.headers.items()}
    kept = [(name, value) for name, value in headers if name not in _FIXED_NAMES and name not in own]
    added = [*_FIXED, (b"x-request-id", context.request_id.encode()), *own.items()]
    if not any(name == b"cache-control" for name, _ in kept):
        added.append((b"cache-control", b"no-store"))
    return kept + added


class OriginMiddleware:
    """Refuses foreign host names (DNS rebinding) and writes from foreign pages."""

    def __init__(self, app: ASGIApp, *, origins: Origins) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_websocket = scope["type"] == "websocket"
        error: AgentLightningError | None = None
        if not self._origins.is_known_host(headers):
            hint = "Add the name to AGL_ALLOWED_HOSTS."
            error = HttpError(400, "This service has another name.", code="HOST_UNKNOWN", hint=hint)
        elif not self._origins.may_write(scope.get("method", "GET"), headers, is_websocket=is_websocket):
            hint = "Add the page's origin to AGL_CORS_ORIGINS."
            error = HttpError(403, "Pages from elsewhere may not do this.", code="ORIGIN_REFUSED", hint=hint)
        if error is not None:
            await refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class BodyMiddleware:
    """Innermost: reads the body of a request that may be answered, up to a limit, before anybody parses it.

    Args:
        app: What comes next.
        max_bytes: Most bytes for each kind of route.
    """

    def __init__(self, app: ASGIApp, *, max_bytes: Callable[[str], int]) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("content-length")
        is_framed = given is not None or "transfer-encoding" in headers or scope.get("http_version", "1.1")[0] != "1"
        if not is_framed:  # then there is no body (RFC 9112, 6.3)
            await self._app(scope, receive, send)
            return
        given = given or "0"
        limit = self._max_bytes(scope["state"]["context"].kind)
        if not given.isdigit() or int(given[:20]) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(_BODY_S):
                body, gone = await _read(receive, limit)
        except TimeoutError as error:
            raise HttpError(408, "The request did not arrive in time.", code="TIMEOUT") from error
        if gone:
            return
        pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Message:
            return pending.pop() if pending else await receive()

        await self._app(scope, replay, send)


async def _read(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The body, and whether the client has gone."""
    pieces: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return b"", True
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return b"".join(pieces), False


def _too_large(limit: int) -> PayloadTooLargeError:
    return PayloadTooLargeError(f"The request is larger than {limit} bytes.")


async def refuse(error: AgentLightningError, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a request, or a websocket that is not open yet, with the error.

    Where the server cannot answer a handshake (ASGI's `websocket.http.response`), the socket is closed with a code.
    """
    if scope["type"] == "websocket" and "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 4000 + error.status, "reason": error.code})
        return
    await error_answer(error)(scope, receive, send)


def _request_id(headers: Headers) -> str:
    given = headers.get("x-request-id", "")
    return given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"

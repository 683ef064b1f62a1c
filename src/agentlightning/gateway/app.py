"""The gateway's routes as an ASGI app: reads requests, sends answers, notices clients that leave.

Knows nothing of how calls are answered. Every call route exists bare, below
`/rollout/{rollout_id}/attempt/{attempt_id}`, and in the 1.0 form below `/proxy/rollout/…/mode/{mode}/openai`
(or `/anthropic`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import orjson
from starlette.applications import Starlette
from starlette.routing import BaseRoute, Route

from agentlightning.gateway.call import CallScope
from agentlightning.gateway.calls import CallService, Reply
from agentlightning.gateway.dialects.anthropic import AnthropicDialect
from agentlightning.gateway.dialects.base import Dialect
from agentlightning.gateway.dialects.openai import OpenAIDialect
from agentlightning.gateway.dialects.responses import ResponsesDialect
from agentlightning.gateway.endpoints import ControlEndpoints, Handler, ModelEndpoints, UnknownPath, for_key_holders
from agentlightning.gateway.errors import CallError, ClientGoneError
from agentlightning.gateway.keys import KeyRing
from agentlightning.gateway.routing import RoutingTable

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

_ROLLOUT = "/rollout/{rollout_id}/attempt/{attempt_id}"
_PROXY = f"/proxy{_ROLLOUT}/mode/{{mode}}"
_PREFIXES = (_ROLLOUT, "", f"{_PROXY}/openai", f"{_PROXY}/anthropic")
_CALL_OF_ROLLOUT = re.compile("/rollout/(?P<rollout_id>[^/]+)/attempt/(?P<attempt_id>[^/]+)/v1(?P<rest>/.+)")
_BODY_SILENCE_S = 60.0
_WATCH_AFTER_S = 0.05
_JSON = (b"content-type", b"application/json")
_SSE = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def build_app(
    service: CallService,
    routes: RoutingTable,
    *,
    extra_routes: Sequence[BaseRoute] = (),
    max_body_bytes: int = 64 << 20,
    keys: KeyRing | None = None,
) -> Starlette:
    """The ASGI app of a gateway; `extra_routes` come after its own, and who may use them is their own business."""

    def answers(kind: type[CallEndpoint], dialect: Dialect) -> CallEndpoint:
        return kind(service, dialect, max_body_bytes, keys)

    calls = {
        "/chat/completions": answers(CallEndpoint, OpenAIDialect("chat")),
        "/messages": answers(CallEndpoint, AnthropicDialect()),
        "/responses": answers(CallEndpoint, ResponsesDialect()),
        "/completions": answers(CallEndpoint, OpenAIDialect("text")),
        "/messages/count_tokens": answers(CountEndpoint, AnthropicDialect(needs_max_tokens=False)),
        "/embeddings": answers(EmbeddingsEndpoint, OpenAIDialect("text")),
    }
    models = ModelEndpoints(routes)
    control = ControlEndpoints(service, routes, keys)

    def guarded(path: str, endpoint: Handler, method: str) -> Route:
        return Route(path, for_key_holders(endpoint, keys), methods=[method])

    own: list[BaseRoute] = []
    for prefix in _PREFIXES:
        # Without /v1 too: some clients are given the base URL without it.
        for base in (f"{prefix}/v1", prefix):
            own += [Route(f"{base}{path}", endpoint, methods=["POST"]) for path, endpoint in calls.items()]
            own += [
                guarded(f"{base}/models", models.list, "GET"),
                guarded(f"{base}/models/{{model:path}}", models.get, "GET"),
            ]
        if prefix:
            own.append(Route(f"{prefix}/{{rest:path}}", UnknownPath()))
    own += [
        Route("/health", control.health, methods=["GET"]),
        guarded("/proxy/pause", control.pause, "POST"),
        guarded("/proxy/resume", control.resume, "POST"),
        guarded("/proxy/state", control.state, "GET"),
    ]
    return Starlette(routes=[*own, *extra_routes])


class ShortWay:
    """Calls of rollouts straight to their endpoints, everything else to the app, which tries its routes in turn.

    Args:
        app: As `build_app` makes it; knows the same paths.
    """

    def __init__(self, app: Starlette) -> None:
        self._app: ASGIApp = app
        self._endpoints: dict[str, CallEndpoint] = {}
        for route in app.routes:
            if isinstance(route, Route) and route.path.startswith(f"{_ROLLOUT}/v1/"):
                endpoint: Any = route.endpoint
                if isinstance(endpoint, CallEndpoint):
                    self._endpoints[route.path.removeprefix(f"{_ROLLOUT}/v1")] = endpoint

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        match = _CALL_OF_ROLLOUT.fullmatch(scope["path"]) if scope.get("method") == "POST" else None
        endpoint = self._endpoints.get(match["rest"]) if match is not None else None
        if match is None or endpoint is None or scope.get("root_path"):
            await self._app(scope, receive, send)
            return
        scope["path_params"] = match.groupdict()
        await endpoint(scope, receive, send)


class CallEndpoint:
    """One call route, as a bare ASGI app: the hot path."""

    def __init__(self, service: CallService, dialect: Dialect, max_body_bytes: int, keys: KeyRing | None) -> None:
        self._service = service
        self._keys = keys
        self._dialect = dialect
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        response = _ResponseWriter(send)
        try:
            key, refusal = self._identify(scope)
            raw = await _read_body(receive, self._max_body_bytes, refusal)
            async with _CancelledOnDisconnect(receive):
                reply = await self._reply(raw, scope, key, response)
        except ClientGoneError:
            return
        except CallError as error:
            await self._send_error(response, error)
            return
        if reply.is_streamed:
            await response.stream(reply.data, is_last=True)
        else:
            await response.send_whole(200, reply.data, [])

    async def _reply(self, raw: bytes, scope: Scope, key: str | None, response: _ResponseWriter) -> Reply:
        call_scope = _call_scope(scope["path_params"])
        return await self._service.handle(self._dialect, raw, call_scope, response.stream, self._headers(scope), key)

    def _identify(self, scope: Scope) -> tuple[str | None, CallError | None]:
        """The name of the caller's key, or why it has none."""
        if self._keys is None:
            return None, None
        try:
            return self._keys.name_of(scope["headers"]), None
        except CallError as refusal:
            return None, refusal

    def _headers(self, scope: Scope) -> dict[str, str] | None:
        wanted = self._dialect.headers
        if not wanted:
            return None
        return {name.decode(): value.decode() for name, value in scope["headers"] if name in wanted}

    async def _send_error(self, response: _ResponseWriter, error: CallError) -> None:
        if response.has_started:
            await response.stream(self._dialect.encode_stream_error(error), is_last=True)
        else:
            await response.send_whole(error.status, self._dialect.encode_error(error), error.headers())


class CountEndpoint(CallEndpoint):
    """Anthropic's count of a prompt's tokens."""

    async def _reply(self, raw: bytes, scope: Scope, key: str | None, response: _ResponseWriter) -> Reply:
        count = await self._service.count_tokens(self._dialect, raw, self._headers(scope), key)
        return Reply(orjson.dumps({"input_tokens": count}), is_streamed=False)


class EmbeddingsEndpoint(CallEndpoint):
    """OpenAI's embeddings, answered by an upstream as they are."""

    async def _reply(self, raw: bytes, scope: Scope, key: str | None, response: _ResponseWriter) -> Reply:
        return Reply(await self._service.embed(raw, key), is_streamed=False)


class _ResponseWriter:
    def __init__(self, send: Send) -> None:
        self._send = send
        self.has_started = False

    async def stream(self, data: bytes, *, is_last: bool = False) -> None:
        if not self.has_started:
            self.has_started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": _SSE})
        await self._send({"type": "http.response.body", "body": data, "more_body": not is_last})

    async def send_whole(self, status: int, data: bytes, headers: list[tuple[bytes, bytes]]) -> None:
        self.has_started = True
        headers = [_JSON, (b"content-length", str(len(data)).encode()), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": data})


async def _read_body(receive: Receive, limit: int, refusal: CallError | None) -> bytes:
    """The request's body.

    Raises:
        CallError: `refusal`, 413 or 408; once the body has been read, for a client that is still sending would miss it.
        ClientGoneError: The connection ended first.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        raise ClientGoneError
    body: bytes = message.get("body", b"")
    if message.get("more_body", False):
        body, size = await _read_rest(receive, body, limit if refusal is None else 0)
    else:
        size = len(body)
    if refusal is not None:
        raise refusal
    if size > limit:
        raise CallError(
            f"The request has {size} bytes; at most {limit} are accepted.", status=413, reason="request_too_large"
        )
    return body


async def _read_rest(receive: Receive, begun: bytes, limit: int) -> tuple[bytes, int]:
    """The whole body and its size; what exceeds the limit is counted and forgotten."""
    chunks, size, is_last = [begun], len(begun), False
    try:
        while not is_last:
            async with asyncio.timeout(_BODY_SILENCE_S):
                message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            chunk = message.get("body", b"")
            size += len(chunk)
            if size <= limit:
                chunks.append(chunk)
            else:
                chunks.clear()
            is_last = not message.get("more_body", False)
    except TimeoutError as error:
        raise CallError(
            f"The request's body did not come: nothing for {_BODY_SILENCE_S:g} s.",
            status=408,
            reason="request_timeout",
        ) from error
    return b"".join(chunks), size


class _CancelledOnDisconnect:
    """Cancels the block when the client leaves, and makes a `ClientGoneError` of that.

    Watching begins a moment later, for many calls are over by then; a connection that ended meanwhile is noticed.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self._is_gone = False

    async def __aenter__(self) -> None:
        owner = asyncio.current_task()
        assert owner is not None
        self._owner = owner
        self._cancelling = owner.cancelling()
        self._begin = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._begin.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
        # As asyncio.timeout does it: only our own cancellation is turned into an error.
        if self._is_gone and kind is asyncio.CancelledError and self._owner.uncancel() <= self._cancelling:
            raise ClientGoneError from None

    def _start(self) -> None:
        self._watcher = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._is_gone = True
        self._owner.cancel()


def _call_scope(path: dict[str, Any]) -> CallScope | None:
    rollout_id = path.get("rollout_id")
    return CallScope(rollout_id, path["attempt_id"], path.get("mode")) if rollout_id else None
